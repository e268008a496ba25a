"""What is searched, one module a system: `SPACE`, dotted paths of settings to Ray Tune distributions, and no more."""
