"""Cache of decoded samples on disk, and how samples reach the model from it."""
