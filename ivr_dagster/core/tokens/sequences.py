"""Token id sequences of documents: fast exact encoders for a byte-level BPE, and their Parquet files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Self

import gigatoken
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from ivr_dagster.core.tokens.counts import encode_types, flat_ids_of_types
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.errors import panics_as_errors
from ivr_dagster.storage.content_hash import content_hash, new_digest

Encoder = Callable[[list[str]], list[np.ndarray]]

DOCUMENTS_PER_READ = 256
# One of so many texts of each call is verified against `tokenizers`.
VERIFIED_STEP = 128
# Of the types, sorted by falling count, so many first ones are verified, and one in VERIFIED_STEP of the others.
VERIFIED_TYPES = 1_000
# gigatoken is reloaded after so many characters, because it caches every pre-token. Reloading takes 0.1 s.
CACHED_CHARACTERS = 1 << 27


def id_dtype(size: int) -> type[np.unsignedinteger]:
    """uint16 if `size` ids fit, otherwise uint32."""
    return np.uint16 if size <= 1 << 16 else np.uint32


def reference_encoder(tokenizer: Tokenizer) -> Encoder:
    """An encoder from texts to ids that uses `tokenizers` on all cores."""
    dtype = id_dtype(tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.array(e.ids, dtype) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def gigatoken_encoder(tokenizer: Tokenizer) -> Encoder | None:
    """An encoder from texts to ids that uses `gigatoken`; None if it does not support the tokenizer.

    Texts with added tokens, which may depend on their neighbors, are encoded by `tokenizers`. So is a sample of each
    call, and all texts of the call if the sample differs.
    """
    loaded = _load_gigatoken(tokenizer)
    if loaded is None:
        return None
    fast: gigatoken.Tokenizer = loaded
    dtype = id_dtype(tokenizer.get_vocab_size(with_added_tokens=True))
    reference, pretokenization = reference_encoder(tokenizer), read_pretokenization(tokenizer)
    characters = 0

    @panics_as_errors()
    def encode(texts: list[str]) -> list[np.ndarray]:
        nonlocal fast, characters
        characters += sum(map(len, texts))
        if characters > CACHED_CHARACTERS:
            _load_gigatoken.cache_clear()
            fast, characters = _load_gigatoken(tokenizer) or fast, 0
        return [
            reference([text])[0] if pretokenization.has_added_token(text) else fast.encode(text).astype(dtype)
            for text in texts
        ]

    return _verified(encode, reference)


@lru_cache(maxsize=2)  # loading takes 0.2 s
def _load_gigatoken(tokenizer: Tokenizer) -> gigatoken.Tokenizer | None:
    try:
        return gigatoken.Tokenizer.from_json(tokenizer.to_str())
    except (RuntimeError, ValueError):
        return None


@panics_as_errors()
def ids_of_types(tokenizer: Tokenizer, types: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """:func:`counts.flat_ids_of_types` by `gigatoken`, which encodes all types as one text separated by an added token.

    Returns:
        None if `gigatoken` does not support the tokenizer, if no added token can separate types, if a type contains
        an added token, or if a sample differs from `tokenizers`.
    """
    fast, added = _load_gigatoken(tokenizer), tokenizer.get_added_tokens_decoder()
    separators = [
        (token_id, token)
        for token_id, token in added.items()
        if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        # a token that starts as it ends could be found at a shifted position
        and not any(token.content.endswith(token.content[:n]) for n in range(1, len(token.content)))
    ]
    if fast is None or not separators or not types:
        return None
    separator, token = separators[0]
    text = token.content.join(types)
    if text.count(token.content) >= len(types) or any(t.content in text for t in added.values() if t != token):
        return None
    ids = fast.encode(text).astype(np.int64)
    ends = np.flatnonzero(ids == separator)
    offsets = np.concatenate([[0], ends - np.arange(len(ends)), [len(ids) - len(ends)]])
    ids = np.delete(ids, ends)
    sample = [*range(min(VERIFIED_TYPES, len(types))), *range(VERIFIED_TYPES, len(types), VERIFIED_STEP)]
    expected = encode_types(tokenizer, [types[n] for n in sample])
    if len(offsets) - 1 != len(types) or [ids[offsets[n] : offsets[n + 1]].tolist() for n in sample] != expected:
        return None
    return ids, offsets


def pretoken_encoder(
    tokenizer: Tokenizer, types: list[str], encoded: tuple[np.ndarray, np.ndarray] | None = None
) -> Encoder:
    """An encoder from texts to ids that looks up the ids of each pre-token type.

    BPE encodes pre-tokens independently, so the ids of a text are those of its pre-tokens in order. `tokenizers`
    encodes texts with added tokens or unknown types, all texts of a tokenizer that normalizes, and a sample of each
    call: if the sample differs, all texts of the call.

    Args:
        tokenizer: the tokenizer.
        types: pre-token types that are expected in the texts.
        encoded: their ids and offsets, if known (see `counts.flat_ids_of_types`).
    """
    reference = reference_encoder(tokenizer)
    pretokenization = read_pretokenization(tokenizer)
    if pretokenization.pattern is None or tokenizer.normalizer is not None or not types:
        return reference
    split = pretokenization.column_splitter(tokenizer)
    ids, offsets = encoded or flat_ids_of_types(tokenizer, types)
    ids = ids.astype(id_dtype(tokenizer.get_vocab_size(with_added_tokens=True)))
    starts, lengths = offsets[:-1], np.diff(offsets)
    codes = pl.DataFrame({"piece": types, "code": np.arange(len(types), dtype=np.uint32)})

    def encode(texts: list[str]) -> list[np.ndarray]:
        column = split(texts).rename("piece")
        pieces = column.explode(empty_as_null=False).to_frame()
        found = pieces.join(codes, on="piece", how="left", maintain_order="left")["code"]
        piece_ends = np.cumsum(column.list.len().to_numpy().astype(np.int64))
        known = found.fill_null(0).to_numpy()
        sizes = lengths[known]
        token_ends = np.concatenate([[0], np.cumsum(sizes)])
        all_ids = ids[np.repeat(starts[known] - token_ends[:-1], sizes) + np.arange(token_ends[-1])]
        sequences = [all_ids[start:end] for start, end in pairwise(token_ends[[0, *piece_ends]])]
        exceptions = {n for n, text in enumerate(texts) if pretokenization.has_added_token(text)}
        exceptions.update(np.searchsorted(piece_ends, np.flatnonzero(found.is_null()), side="right").tolist())
        for n in exceptions:
            sequences[n] = reference([texts[n]])[0]
        return sequences

    return _verified(encode, reference)


def _verified(encode: Encoder, reference: Encoder) -> Encoder:
    """An encoder that compares some texts of each call with `reference`, and returns its results if they differ."""

    def encode_verified(texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        sequences = encode(texts)
        sample = slice(len(texts) // 2 % VERIFIED_STEP, None, VERIFIED_STEP)  # at least one
        for found, expected in zip(sequences[sample], reference(texts[sample]), strict=True):
            if not np.array_equal(found, expected):
                return reference(texts)
        return sequences

    return encode_verified


@dataclass(frozen=True)
class TokenSequences:
    """Handle of a folder of Parquet files with `document_id` and `ids` (list of uint16 or uint32), in corpus order."""

    path: Path

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the ids of each document, [n]."""
        for _, ids in self.documents():
            yield ids

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (document id, ids [n]) in corpus order."""
        for part in sorted(self.path.glob("*.parquet")):
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(batch_size=DOCUMENTS_PER_READ):
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


class SequencesWriter:
    """Writes one Parquet file of token sequences and counts their ids.

    Attributes:
        frequencies: occurrences of each id written so far, int64 [size].
    """

    def __init__(self, file: Path, size: int) -> None:
        ids = pa.large_list(pa.from_numpy_dtype(id_dtype(size)))
        self._schema = pa.schema({"document_id": pa.string(), "ids": ids})
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
        self.frequencies = np.zeros(size, dtype=np.int64)
        self._digests = [new_digest() for _ in ("document ids", "lengths", "ids")]

    def __enter__(self) -> Self:
        return self

    def write(self, document_ids: list[str], sequences: list[np.ndarray]) -> None:
        """Appends documents as a row group; `sequences` has the ids of each, [n]."""
        all_ids = np.concatenate(sequences)
        offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
        # Through polars: `pyarrow.array` imports pandas, half a second in every worker.
        ids = pa.LargeListArray.from_arrays(pl.Series(offsets).to_arrow(), pl.Series(all_ids).to_arrow())
        columns = [pl.Series(document_ids, dtype=pl.String).to_arrow().cast(pa.string()), ids]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self.frequencies += np.bincount(all_ids, minlength=len(self.frequencies))
        document_digest, length_digest, id_digest = self._digests
        document_digest.update("".join(f"{document_id}\n" for document_id in document_ids).encode())
        length_digest.update(np.diff(offsets).data)
        id_digest.update(all_ids.data)

    def digest(self) -> str:
        """Hash of the document ids and sequences written so far, independent of the row groups."""
        return content_hash(" ".join(digest.hexdigest() for digest in self._digests))

    def __exit__(self, *_: object) -> None:
        self._writer.close()
