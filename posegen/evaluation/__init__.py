"""Published metrics, baselines, evaluation of a run and comparison of runs."""
