"""UPMC Food-101: lists of pictures and titles, sources of samples, and the command that encodes them."""
