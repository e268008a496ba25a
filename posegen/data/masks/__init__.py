"""Pose masks and person masks."""
