"""Synthetic data in the layout of each dataset, for tests and demonstrations."""
