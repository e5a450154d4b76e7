"""Tasks of the recipes: losses and metrics."""
