"""Benchmarks: one command, `python -m benchmarks`, makes README's tables."""
