"""Reading, splitting, batching, preparing and generating audio-visual clips."""
