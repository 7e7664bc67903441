"""Open weights of the Wan family, run by our own code."""
