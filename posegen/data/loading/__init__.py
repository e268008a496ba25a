"""Shards to batches of columns on a device."""
