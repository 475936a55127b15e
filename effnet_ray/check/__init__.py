"""Looks before anything is bought or started: what is found, and what to do about it."""
