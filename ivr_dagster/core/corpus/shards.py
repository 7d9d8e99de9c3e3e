"""Groups of consecutive corpus files that are read together; results are cached until one of the files changes."""

import hashlib
import os
from collections.abc import Sequence

from ivr_dagster.core.corpus.files import CorpusFile

# A shard is about 1/256 of the corpus, so that a small change rebuilds only a small part. Bounds in bytes: smaller
# shards would be mostly overhead; larger ones would be too much work to lose with a worker.
SHARDS = 256
MIN_SHARD_BYTES, MAX_SHARD_BYTES = 1 << 18, 1 << 26


def group_into_shards(files: Sequence[CorpusFile]) -> list[list[CorpusFile]]:
    """Groups the files, in order, into shards.

    A boundary depends only on the name and size of the file before it (content-defined chunking), so adding or
    removing a file moves only the boundaries next to it. The target size is a power of two: it changes only when the
    corpus doubles.
    """
    total = sum(file.size for file in files)
    target = max(MIN_SHARD_BYTES, min(MAX_SHARD_BYTES, 1 << (total // SHARDS).bit_length()))
    shards: list[list[CorpusFile]] = [[]]
    size = 0
    for file in files:
        shards[-1].append(file)
        size += file.size
        point = int.from_bytes(hashlib.blake2b(os.fsencode(file.name), digest_size=8).digest())
        # A file of at least half the target always ends its shard; a smaller one with probability 2 * size / target.
        if point * target < 2 * file.size << 64 or size > 4 * target:
            shards.append([])
            size = 0
    return [shard for shard in shards if shard]
