"""Output of runs: live view, files of a run folder, tables, pictures and a page."""
