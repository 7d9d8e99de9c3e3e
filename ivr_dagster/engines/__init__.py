"""What runs the same function over many shards: processes of this machine, or a cluster.

What belongs here: where work runs. What it is, and that its results do not depend on where, is core's business.
"""

# what tells libraries that they have one core, before they are imported
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
