"""What is kept: cells of (checkpoint, score), who measures which, the run they belong to, and its trajectories."""
