"""Figures, one file each; they read only a run's results and its emergence.json."""
