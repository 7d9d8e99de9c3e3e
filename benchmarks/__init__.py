"""Benchmarks: `python -m benchmarks` and its modules produce the figures of README and docs/results."""
