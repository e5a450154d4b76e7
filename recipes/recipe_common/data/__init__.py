"""Datasets of clips, pictures, spectrograms, texts and volumes: reading, splitting, batching; synthetic sets."""
