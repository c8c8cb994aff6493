"""A sweep on a SLURM cluster, or on several devices of one machine."""
