"""Prepared data on disk: Arrow files with a manifest."""
