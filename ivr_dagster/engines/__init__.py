"""What runs the same function over many shards: processes of this machine, or a cluster.

What belongs here: where work runs. What it is, and that its results do not depend on where, is core's business.
"""
