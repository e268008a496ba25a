"""Data sets: which images there are, their splits and their pairs."""
