"""Evaluation, prediction, export and serving of a release."""
