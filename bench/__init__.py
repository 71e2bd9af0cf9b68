"""Benchmarks: ratios in one run on one machine. Run with `make bench` or `python -m bench NAME`."""
