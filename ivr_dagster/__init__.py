"""ivr_dagster: a pretrained causal language model onto a better vocabulary of the same size."""
