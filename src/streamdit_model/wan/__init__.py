"""What runs the open weights of the Wan family, and nothing else."""
