"""Evaluating, predicting with, exporting and serving a release."""
