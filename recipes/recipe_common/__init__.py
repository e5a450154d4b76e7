"""What the recipes share: data, models, training and report."""
