"""AVE: lists and folders of clips with events, the sound of an event, and the published features by segment."""
