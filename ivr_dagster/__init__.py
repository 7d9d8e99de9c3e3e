"""ivr_dagster: move a pretrained causal language model to a new vocabulary of the same size.

docs/concepts/architecture.md has a map of the packages. The algorithms, without Dagster, are in `core`.
"""
