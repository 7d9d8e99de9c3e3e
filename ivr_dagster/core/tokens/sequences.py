"""Id sequences by document, as columns of unsigned integers.

What belongs here: exact encoders for a byte-level BPE, and the Parquet layout of what they yield.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Self

import gigatoken
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from ivr_dagster.core.tokens.counts import encode_types
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.storage.arrow_columns import number_column, string_column
from ivr_dagster.storage.content_hash import content_hash, new_digest

Encoder = Callable[[list[str]], list[np.ndarray]]

READ_TEXTS = 256
# of texts that are encoded at once, one of so many is verified
VERIFIED_STEP = 128
# of types, which come by falling count, so many first ones are verified, and of the others one of so many
VERIFIED_TYPES = 1_000
# after so many characters `gigatoken` is loaded anew, which takes a tenth of a second
CACHED_CHARACTERS = 1 << 27


def id_dtype(size: int) -> type[np.unsignedinteger]:
    """uint16 where `size` ids fit into it, else uint32."""
    return np.uint16 if size <= 1 << 16 else np.uint32


def reference_encoder(tokenizer: Tokenizer) -> Encoder:
    """Texts to ids by `tokenizers` itself, all cores."""
    dtype = id_dtype(tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.array(e.ids, dtype) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def built_in_encoder(tokenizer: Tokenizer) -> Encoder | None:
    """Texts to ids by `gigatoken`, None where it does not know the tokenizer's kind.

    Texts with added tokens, some of which mind their neighbours, are left to `tokenizers`. So is a sample of the texts
    of each call, and all of them if the two differ there.
    """
    found = _built_in(tokenizer)
    if found is None:
        return None
    fast: gigatoken.Tokenizer = found
    dtype = id_dtype(tokenizer.get_vocab_size(with_added_tokens=True))
    reference, pretokenization = reference_encoder(tokenizer), read_pretokenization(tokenizer)
    characters = 0

    def encode(texts: list[str]) -> list[np.ndarray]:
        nonlocal fast, characters
        characters += sum(map(len, texts))
        if characters > CACHED_CHARACTERS:  # it remembers every pre-token that it ever met
            _built_in.cache_clear()
            fast, characters = _built_in(tokenizer) or fast, 0
        return [
            reference([text])[0] if pretokenization.holds_added_token(text) else fast.encode(text).astype(dtype)
            for text in texts
        ]

    return _verified(encode, reference)


@lru_cache(maxsize=2)  # loading one takes a fifth of a second
def _built_in(tokenizer: Tokenizer) -> gigatoken.Tokenizer | None:
    try:
        return gigatoken.Tokenizer.from_json(tokenizer.to_str())
    except (RuntimeError, ValueError):
        return None


def ids_of_types(tokenizer: Tokenizer, types: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids of pre-token types, each encoded by itself, by `gigatoken`: as one text, with added tokens between them.

    Returns:
        All ids, int64 [tokens], and where those of each type begin and the last one's end, int64 [types + 1]. None
        where `gigatoken` does not know the tokenizer's kind, where there is no added token that keeps types apart or
        one is written out in a type, and where a sample differs from `tokenizers`.
    """
    fast, added = _built_in(tokenizer), tokenizer.get_added_tokens_decoder()
    apart = [
        (token_id, token)
        for token_id, token in added.items()
        if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        # one that begins as it ends could be found a little to the side of where it stands
        and not any(token.content.endswith(token.content[:n]) for n in range(1, len(token.content)))
    ]
    if fast is None or not apart or not types:
        return None
    separator, token = apart[0]
    text = token.content.join(types)
    if text.count(token.content) >= len(types) or any(t.content in text for t in added.values() if t != token):
        return None
    ids = fast.encode(text).astype(np.int64)
    ends = np.flatnonzero(ids == separator)
    starts = np.concatenate([[0], ends - np.arange(len(ends)), [len(ids) - len(ends)]])
    ids = np.delete(ids, ends)
    sample = [*range(min(VERIFIED_TYPES, len(types))), *range(VERIFIED_TYPES, len(types), VERIFIED_STEP)]
    expected = encode_types(tokenizer, [types[n] for n in sample])
    if len(starts) - 1 != len(types) or [ids[starts[n] : starts[n + 1]].tolist() for n in sample] != expected:
        return None
    return ids, starts


def encoder_by_types(tokenizer: Tokenizer, types: list[str]) -> Encoder:
    """Texts to ids by their pre-tokens: each type is encoded once, by `tokenizers` itself.

    BPE encodes each pre-token by itself, so a text's ids are those of its pre-tokens one after the other. Texts with
    added tokens, or with a type that is not among `types`, are encoded by `tokenizers` whole, and so are all texts of
    a tokenizer that normalizes. A sample of the texts of each call is encoded both ways; if the two differ there, all
    of them are encoded by `tokenizers`.
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
        return sequences

    return _verified(encode, reference)


def _verified(encode: Encoder, reference: Encoder) -> Encoder:
    """An encoder that is held against another on some texts of each call, and gives way to it where they differ."""

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


class SequencesWriter:
    """Writes one Parquet part of token sequences, and counts their ids.

    Attributes:
        frequencies: how often each id was written, int64 [size].
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
        """Add documents as a row group; `sequences` holds the ids of each, [n]."""
        every = np.concatenate(sequences)
        offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
        ids = pa.LargeListArray.from_arrays(number_column(offsets), number_column(every))
        columns = [string_column(document_ids), ids]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self.frequencies += np.bincount(every, minlength=len(self.frequencies))
        names, lengths, written = self._digests
        names.update("".join(f"{document_id}\n" for document_id in document_ids).encode())
        lengths.update(np.diff(offsets).data)
        written.update(every.data)

    def digest(self) -> str:
        """A hash of the documents' ids and sequences written so far, in whatever row groups they were."""
        return content_hash(" ".join(digest.hexdigest() for digest in self._digests))

    def __exit__(self, *_: object) -> None:
        self._writer.close()
