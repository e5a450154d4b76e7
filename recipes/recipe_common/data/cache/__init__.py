"""Cache of decoded samples on disk, how samples reach the model from it, and facts from the headers of files."""
