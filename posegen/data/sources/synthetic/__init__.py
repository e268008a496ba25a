"""The embedded data set: clothed people drawn from a seed."""
