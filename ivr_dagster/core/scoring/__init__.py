"""Scoring: bits per byte of a model on documents, with equal contexts for every tokenizer."""
