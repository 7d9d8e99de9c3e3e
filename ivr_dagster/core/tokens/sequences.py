"""Id sequences by document, as columns of unsigned integers.

What belongs here: the fastest exact encoder a library offers for a byte-level BPE, and the Parquet layout of what
it yields.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, bytes_of, is_byte_level
from ivr_dagster.core.tokens.counts import encode_types
from ivr_dagster.core.tokens.pretokens import read_pretokenization

Encoder = Callable[[list[str]], list[np.ndarray]]

BATCH_TEXTS = 256
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
    """Texts to ids by tiktoken, several times as fast, where it gives the base tokenizer's ids.

    tiktoken joins any two neighbours whose union is a token, by id; a BPE joins those its merges list, by merge
    rank. On well-made vocabularies that is the same. It is proved here for the corpus at hand: the ids of every
    pre-token type in `types` are compared, and where one differs `tokenizers` does the work.
    """
    pretokenization = read_pretokenization(tokenizer)
    spec = json.loads(tokenizer.to_str())
    special = {token["content"]: int(token["id"]) for token in spec["added_tokens"]}
    vocabulary = {string: token_id for string, token_id in spec["model"]["vocab"].items() if string not in special}
    if (
        pretokenization.pattern is None
        or spec.get("normalizer") is not None
        or not vocabulary.keys() >= CHARACTER_TO_BYTE.keys()
        or not all(map(is_byte_level, vocabulary))
        or any(token["single_word"] or token["lstrip"] or token["rstrip"] for token in spec["added_tokens"])
    ):
        return reference_encoder(tokenizer)
    import tiktoken

    encoding = tiktoken.Encoding(
        "base",
        pat_str=pretokenization.pattern,
        mergeable_ranks={bytes_of(string): token_id for string, token_id in vocabulary.items()},
        special_tokens=special,
    )
    expected = encode_types(tokenizer, types)
    if any(encoding.encode_ordinary(piece) != ids for piece, ids in zip(types, expected, strict=True)):
        return reference_encoder(tokenizer)
    dtype = id_dtype(tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [encoding.encode_to_numpy(text, allowed_special="all").astype(dtype) for text in texts]

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
                for batch in file.iter_batches(batch_size=BATCH_TEXTS):
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
    documents = iter(documents)
    writer: pq.ParquetWriter | None = None
    part = total = in_part = 0
    try:
        while batch := list(islice(documents, BATCH_TEXTS)):
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
