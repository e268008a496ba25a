"""Scores by published protocols, baselines, and the comparison of runs."""
