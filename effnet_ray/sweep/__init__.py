"""The search over variants and recipes with Ray Tune."""
