"""Typed, frozen settings of recipes and their sub-commands: how they are declared, and those that recipes share."""
