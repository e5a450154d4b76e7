"""The networks that the recipes train."""
