"""Shards of a raw corpus: runs of files that are read together, and whose results stand as long as the files do."""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ivr_dagster.core.corpus.documents import corpus_files, hash_content
from ivr_dagster.errors import InputError
from ivr_dagster.storage.content_hash import new_digest
from ivr_dagster.storage.file_hashes import FileHashCache, HashedFile
from ivr_dagster.storage.file_identity import FileIdentity

# Bytes. A shard is about 1/256 of the corpus, so that a change of one part in a hundred stays one; a smaller one would
# be more overhead than work, a larger one more than a worker should lose
SHARDS = 256
LEAST_SHARD, MOST_SHARD = 1 << 18, 1 << 26
# of the coarsest clock of a file system in use (FAT's, two seconds), in nanoseconds
GRAIN_NS = 2_000_000_000
# files that a thread looks at before others take over: of many small ones, handing over is most of the work
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of the corpus as it was found.

    Attributes:
        path: the file.
        name: its path relative to the corpus, "/" between folders.
        size: bytes.
        content: BLAKE2b of its bytes.
    """

    path: Path
    name: str
    size: int
    content: bytes


def read_corpus_files(root: Path, kept: FileHashCache | None = None) -> list[CorpusFile]:
    """The corpus files below `root` with their contents' hashes, by name.

    Args:
        root: the user's folder.
        kept: hashes of files; those that are as they were are not read.

    Raises:
        InputError: as documents.corpus_files does, or a file cannot be read.
    """
    known = kept.read() if kept else {}

    def look_at(path: Path) -> tuple[CorpusFile, HashedFile]:
        try:
            identity = FileIdentity.of(path, strict=True)
        except OSError as error:
            message = f"the file was there and cannot be found any more ({error.strerror})"
            raise InputError(message, where=path, remedy="Run again once the corpus keeps still") from error
        before = known.get(str(path))
        content = before.content if before and before.identity == identity else hash_content(path)
        name = path.relative_to(root).as_posix()
        return CorpusFile(path, name, identity.bytes, content), HashedFile(identity, content)

    def look_at_some(paths: Sequence[Path]) -> list[tuple[CorpusFile, HashedFile]]:
        return [look_at(path) for path in paths]

    begun = time.time_ns()
    paths = corpus_files(root)
    some = [paths[first : first + _AT_ONCE] for first in range(0, len(paths), _AT_ONCE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets other threads run
        looked_at = [each for found in pool.map(look_at_some, some) for each in found]
    if kept:
        still = {str(file.path): each for file, each in looked_at if each.identity.changed < begun - GRAIN_NS}
        others = {path: each for path, each in known.items() if not path.startswith(f"{root}{os.sep}")}
        if {**others, **still} != known:
            kept.write({**others, **still})
    return [file for file, _ in looked_at]


def fingerprint_corpus(root: Path, kept: FileHashCache | None = None) -> str:
    """A hash (BLAKE2b, 32 hexadecimal digits) of the corpus files' names and contents; times are left out.

    Raises:
        InputError: as :func:`read_corpus_files`.
    """
    whole = new_digest()
    for file in read_corpus_files(root, kept):
        # no path holds a NUL and the digest's length is fixed, so that no two corpora spell the same bytes
        whole.update(os.fsencode(file.name) + b"\0" + file.content)
    return whole.hexdigest()


def shards_of(files: Sequence[CorpusFile]) -> list[list[CorpusFile]]:
    """The files, in order, as shards.

    Where one ends is decided by each file's own name and size (content-defined chunking), so that a file that comes or
    goes moves no boundary but those next to it. The size that is aimed at is a power of two: it stays as the corpus
    grows, until that has doubled.
    """
    aim = max(LEAST_SHARD, min(MOST_SHARD, 1 << (sum(file.size for file in files) // SHARDS).bit_length()))
    shards: list[list[CorpusFile]] = [[]]
    size = 0
    for file in files:
        shards[-1].append(file)
        size += file.size
        point = int.from_bytes(hashlib.blake2b(os.fsencode(file.name), digest_size=8).digest())
        # from half the aim on a file always ends its shard, a smaller one does so in proportion to its size
        if point * aim < 2 * file.size << 64 or size > 4 * aim:
            shards.append([])
            size = 0
    return [shard for shard in shards if shard]
