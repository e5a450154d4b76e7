"""Comparisons of several runs, over methods and seeds, in one process or several, and searches."""
