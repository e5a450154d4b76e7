"""AVE: lists and folders of clips with events, spectrograms of events, and the published features by segment."""
