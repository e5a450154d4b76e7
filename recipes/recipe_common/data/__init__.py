"""Reading, splitting, batching, preparing and generating: clips, pictures, spectrograms, text, volumes."""
