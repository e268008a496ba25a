"""Files that are complete or absent, the folder or URI of a run, and the lock on it."""
