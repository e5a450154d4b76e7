"""What a person sees of a run: the live view, the files of a run folder, tables and pictures."""
