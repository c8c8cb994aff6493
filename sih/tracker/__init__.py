"""Weights & Biases: a view of a run, made anew at every publication, and the dashboard that shows it."""
