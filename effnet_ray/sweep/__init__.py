"""Sweeps: which recipes to try, for how long, and what came of it."""
