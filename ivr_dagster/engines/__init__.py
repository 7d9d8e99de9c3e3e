"""Where shards are processed: local processes or a Ray cluster. Results do not depend on the choice."""

# Limits libraries to one core per worker. Must be set before the libraries are imported.
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
