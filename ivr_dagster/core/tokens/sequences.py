"""Id sequences by document, as columns of unsigned integers.

What belongs here: an exact encoder for a byte-level BPE that works on many texts at once, and the Parquet layout of
what it yields.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from ivr_dagster.core.tokens.counts import encode_types
from ivr_dagster.core.tokens.pretokens import BATCH_CHARACTERS, batches_of, read_pretokenization

Encoder = Callable[[list[str]], list[np.ndarray]]

READ_TEXTS = 256
PART_TOKENS = 16_000_000


def id_dtype(size: int) -> type[np.unsignedinteger]:
    """uint16 where `size` ids fit into it, else uint32."""
    return np.uint16 if size <= 1 << 16 else np.uint32


def reference_encoder(tokenizer: Tokenizer) -> Encoder:
    """Texts to ids by `tokenizers` itself, all cores."""
    dtype = id_dtype(tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.array(e.ids, dtype) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def fast_encoder(tokenizer: Tokenizer, types: list[str]) -> Encoder:
    """Texts to ids by their pre-tokens: each type is encoded once, by `tokenizers` itself.

    BPE encodes each pre-token by itself, so a text's ids are those of its pre-tokens one after the other. Texts with
    added tokens, or with a type that is not among `types`, are encoded by `tokenizers` whole, and so are all texts of
    a tokenizer that normalises. Of the texts of each call one is encoded both ways; if the two differ, all of them are
    encoded by `tokenizers`.
    """
    reference = reference_encoder(tokenizer)
    pretokenization = read_pretokenization(tokenizer)
    if pretokenization.pattern is None or tokenizer.normalizer is not None or not types:
        return reference
    split = pretokenization.column_splitter(tokenizer)
    encoded = encode_types(tokenizer, types)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    ids = np.fromiter(chain.from_iterable(encoded), id_dtype(tokenizer.get_vocab_size(with_added_tokens=True)))
    starts = np.cumsum(lengths) - lengths
    codes = pl.DataFrame({"piece": types, "code": np.arange(len(types), dtype=np.uint32)})

    def encode(texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        column = split(texts).rename("piece")
        exploded = column.explode(empty_as_null=False).to_frame()
        found = exploded.join(codes, on="piece", how="left", maintain_order="left")["code"]
        last_piece = np.cumsum(column.list.len().to_numpy().astype(np.int64))  # of each text, and one more
        known = found.fill_null(0).to_numpy()
        sizes = lengths[known]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        every = ids[np.repeat(starts[known] - ends[:-1], sizes) + np.arange(ends[-1])]
        sequences = [every[start:end] for start, end in pairwise(ends[[0, *last_piece]])]
        whole = {n for n, text in enumerate(texts) if pretokenization.holds_added_token(text)}
        whole.update(np.searchsorted(last_piece, np.flatnonzero(found.is_null()), side="right").tolist())
        for n in whole:
            sequences[n] = reference([texts[n]])[0]
        middle = len(texts) // 2
        if np.array_equal(sequences[middle], reference([texts[middle]])[0]):
            return sequences
        return reference(texts)

    return encode


@dataclass(frozen=True)
class TokenSequences:
    """A folder of Parquet parts with `document_id` and `ids` (list of uint16 or uint32), in corpus order."""

    path: Path

    def __iter__(self) -> Iterator[np.ndarray]:
        """The ids of one document after the other, [n]."""
        for _, ids in self.documents():
            yield ids

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """(document id, ids [n]) in corpus order."""
        for part in sorted(self.path.glob("*.parquet")):
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(batch_size=READ_TEXTS):
                    column = batch.column("ids")
                    values, offsets = column.flatten().to_numpy(), column.offsets.to_numpy()
                    offsets = offsets - offsets[0]
                    for n, document_id in enumerate(batch.column("document_id").to_pylist()):
                        yield document_id, values[offsets[n] : offsets[n + 1]]

    def frequencies(self, size: int) -> np.ndarray:
        """Occurrences of each id, int64 [size]."""
        total = np.zeros(size, dtype=np.int64)
        for ids in self:
            total += np.bincount(ids, minlength=size)
        return total


def write_token_sequences(documents: Iterable[tuple[str, str]], encode: Encoder, target: Path) -> int:
    """Encode (document id, text) pairs into Parquet parts under `target`; returns the number of tokens."""
    target.mkdir(parents=True, exist_ok=True)
    writer: pq.ParquetWriter | None = None
    part = total = in_part = 0
    try:
        for batch in batches_of(documents, lambda document: len(document[1]), BATCH_CHARACTERS):
            sequences = encode([text for _, text in batch])
            offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
            ids = pa.LargeListArray.from_arrays(offsets, np.concatenate(sequences))
            table = pa.table({"document_id": [document_id for document_id, _ in batch], "ids": ids})
            if writer is None or in_part >= PART_TOKENS:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(target / f"part-{part:05d}.parquet", table.schema, compression="zstd")
                part, in_part = part + 1, 0
            writer.write_table(table)
            in_part += int(offsets[-1])
            total += int(offsets[-1])
    finally:
        if writer is not None:
            writer.close()
    return total
