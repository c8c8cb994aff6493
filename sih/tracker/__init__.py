"""Weights & Biases: a view of the store, rebuilt whole at every publication, and the dashboard that shows it."""
