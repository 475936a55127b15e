"""Checks before a run, when no machine has been requested yet."""
