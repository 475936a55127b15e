"""The arms of `benchmarks/chaos.py`: what is disturbed, how, and what must hold afterwards."""
