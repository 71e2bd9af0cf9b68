"""Planting backdoors: for the demo, tests and benchmarks only."""
