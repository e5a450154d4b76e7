"""Shared code of the recipes: data, models, training and report."""
