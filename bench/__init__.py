"""Benchmarks: ratios in one run on one machine. Run with `python -m bench NAME`; those of scans are `goodnet bench`."""
