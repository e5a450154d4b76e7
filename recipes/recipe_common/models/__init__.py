"""Networks of the recipes: encoders, fusions and whole models."""
