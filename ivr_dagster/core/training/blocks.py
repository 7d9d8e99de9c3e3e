"""Training blocks: token sequences packed into blocks of equal length, as an Arrow dataset of `datasets`."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.errors import InputError, short_message
from ivr_dagster.storage.atomic import atomic_write, remove, staging_path

if TYPE_CHECKING:
    from datasets import Dataset

COLUMN = "input_ids"
# rows per Arrow record batch: 4 MB with blocks of 1,024 tokens
_BATCH_BLOCKS = 1_000


@dataclass(frozen=True)
class BlockCounts:
    """Counts of packed data; `tokens`, including end-of-text tokens, is blocks · block_size + dropped_tokens."""

    documents: int
    tokens: int
    blocks: int
    dropped_tokens: int


def pack_blocks(
    sequences: Iterable[NDArray[np.integer[Any]]], *, block_size: int, eos_id: int
) -> Iterator[NDArray[np.int32]]:
    """Concatenate the documents, each followed by an end-of-text token, and cut the result into full blocks.

    Args:
        sequences: one document each, ids `[n]` of any integer dtype; empty ones are skipped.
        block_size: tokens per block.
        eos_id: id of the end-of-text token.

    Yields:
        int32 ids `[block_size]`. The last, incomplete block is dropped.

    Raises:
        InputError: the block size is below 2.
    """
    if block_size < 2:
        raise InputError(
            f"a block of {block_size} tokens has nothing to predict",
            where="--block-size",
            remedy="Use 2 or more, usually the model's context length",
        )
    end = np.array([eos_id], dtype=np.int32)
    pending: list[NDArray[np.int32]] = []
    held = 0
    for sequence in sequences:
        if not len(sequence):
            continue
        pending += [sequence.astype(np.int32), end]
        held += len(sequence) + 1
        if held >= block_size:
            joined = np.concatenate(pending)
            full = held - held % block_size
            yield from joined[:full].reshape(-1, block_size)
            pending, held = [joined[full:]], held - full


def write_blocks(
    sequences: Iterable[NDArray[np.integer[Any]]], path: Path, *, block_size: int, eos_id: int, vocab_size: int
) -> BlockCounts:
    """Pack `sequences` into the folder `path`, which `datasets.load_from_disk` (and :func:`read_blocks`) opens.

    It has one column `input_ids`, int32 lists of length `block_size`. The data is streamed: memory holds one document
    and 1,000 blocks. The folder appears atomically. Equal sequences give equal bytes with the same versions of datasets
    and pyarrow.

    Args:
        sequences: one document each, ids `[n]`.
        path: the folder to write or replace.
        block_size: tokens per block.
        eos_id: id of the end-of-text token.
        vocab_size: V; every id must be below it.

    Raises:
        InputError: an id outside the vocabulary, or too few tokens for a single block.
    """
    from datasets import Dataset, Features, List, Value, disable_progress_bars, enable_progress_bars
    from datasets.table import MemoryMappedTable
    from datasets.utils import are_progress_bars_disabled

    if not 0 <= eos_id < vocab_size:
        raise InputError(f"the end-of-text id {eos_id} is outside the vocabulary of {vocab_size}")
    documents = _CheckedDocuments(sequences, vocab_size)
    features = Features({COLUMN: List(Value("int32"), length=block_size)})
    digest = hashlib.sha256(f"{block_size} {eos_id}".encode())
    packed = staging_path(path)
    shown = not are_progress_bars_disabled()
    try:
        batches = _batches(pack_blocks(documents, block_size=block_size, eos_id=eos_id))
        blocks = _write_arrow(packed, batches, features.arrow_schema, digest)
        count, tokens = documents.count, documents.tokens
        if not blocks:
            raise InputError(
                f"the text gives {tokens:,} tokens in {count:,} documents, fewer than one block of {block_size:,}",
                where="--block-size",
                remedy="Set a smaller --block-size, or use more text",
            )
        disable_progress_bars()
        dataset = Dataset(MemoryMappedTable.from_file(str(packed)), fingerprint=digest.hexdigest()[:16])
        with atomic_write(path) as staged:
            dataset.save_to_disk(staged)
    finally:
        remove(packed)
        if shown:
            enable_progress_bars()
    return BlockCounts(count, tokens, blocks, tokens - blocks * block_size)


class _CheckedDocuments:
    """Documents that are checked and counted while they are read; empty ones are skipped."""

    def __init__(self, sequences: Iterable[NDArray[np.integer[Any]]], vocab_size: int) -> None:
        self._sequences, self._vocab_size = sequences, vocab_size
        self.count = self.tokens = 0

    def __iter__(self) -> Iterator[NDArray[np.integer[Any]]]:
        for number, sequence in enumerate(self._sequences):
            outside = sequence[(sequence < 0) | (sequence >= self._vocab_size)]
            if len(outside):
                raise InputError(
                    f"document {number} contains the id {outside[0]}, the vocabulary ends at {self._vocab_size - 1}",
                    remedy="Use sequences and tokenizer of the same run",
                )
            if len(sequence):
                self.count, self.tokens = self.count + 1, self.tokens + len(sequence) + 1
                yield sequence


def _write_arrow(file: Path, batches: Iterable[NDArray[np.int32]], schema: Any, digest: Any) -> int:
    """Write batches `[n, block_size]` as an Arrow stream, and update the digest; returns the number of blocks."""
    import pyarrow as pa

    blocks = 0
    with pa.OSFile(str(file), "wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        for batch in batches:
            digest.update(batch.tobytes())
            blocks += len(batch)
            column = pa.FixedSizeListArray.from_arrays(pa.array(batch.ravel()), batch.shape[1])
            writer.write_batch(pa.record_batch([column], schema=schema))
    return blocks


def read_blocks(path: Path) -> "Dataset":
    """Open the blocks that :func:`write_blocks` left, memory-mapped; its rows are numpy ids `[block_size]`.

    Raises:
        InputError: there are no blocks at `path`, or not one, or of several lengths.
    """
    from datasets import Dataset, load_from_disk

    remedy = "Use a folder that the stage train wrote, training/blocks"
    try:
        dataset = load_from_disk(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read training blocks ({short_message(error)})", where=path, remedy=remedy) from error
    if not isinstance(dataset, Dataset):
        raise InputError(f"expected one dataset, found those of {', '.join(dataset)}", where=path, remedy=remedy)
    if COLUMN not in (dataset.column_names or ()):
        raise InputError(f"the dataset has the columns {dataset.column_names}, not {COLUMN}", where=path, remedy=remedy)
    if getattr(dataset.features[COLUMN], "length", -1) < 2:
        raise InputError(
            f"expected blocks of equal length, found {COLUMN} of type {dataset.features[COLUMN]}",
            where=path,
            remedy=remedy,
        )
    if not len(dataset):
        raise InputError("the dataset is empty", where=path, remedy=remedy)
    return dataset.with_format("numpy")


def used_ids(dataset: "Dataset") -> NDArray[np.int32]:
    """The ids that occur in blocks that :func:`read_blocks` opened, int32, sorted."""
    import pyarrow.compute as pc

    found = [pc.unique(chunk.flatten()).to_numpy() for chunk in dataset.data.column(COLUMN).chunks]
    return np.unique(np.concatenate(found))


def _batches(blocks: Iterator[NDArray[np.int32]]) -> Iterator[NDArray[np.int32]]:
    """Stack the blocks to `[n, block_size]`, n at most `_BATCH_BLOCKS`."""
    batch: list[NDArray[np.int32]] = []
    for block in blocks:
        batch.append(block)
        if len(batch) == _BATCH_BLOCKS:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
