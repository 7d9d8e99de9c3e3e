"""Evaluation: how well a model predicts held-out text, what it writes, and the report that compares variants."""
