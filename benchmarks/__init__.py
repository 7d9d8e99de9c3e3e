"""Benchmarks: `python -m benchmarks` and the modules here measure the figures of README and docs/results.

Every ratio compares with a peer in the same run. Raw figures are saved in benchmarks/results.
"""
