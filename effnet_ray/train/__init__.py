"""The training loop, its checkpoints and records, and the Ray Train workers that run it."""
