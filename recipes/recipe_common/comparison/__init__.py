"""Several runs side by side: methods, seeds, processes."""
