"""One stage trained: step, loop, checkpoints, workers on Ray Train."""
