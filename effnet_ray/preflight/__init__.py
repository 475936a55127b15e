"""Checks that run before anything is leased or bought."""
