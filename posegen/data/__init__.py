"""Data sets: from image files and annotations to batches on a device."""
