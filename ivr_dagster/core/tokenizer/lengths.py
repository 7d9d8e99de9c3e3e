"""Token counts of the same texts under several tokenizers.

Texts are split into pre-tokens once, and each tokenizer encodes each pre-token type once. Only a tokenizer
whose pre-tokens cross the pre-token boundaries of the base has to encode the full texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.segments import encode_each, segments_of_types
from ivr_dagster.core.tokens.pretokens import pre_tokenizer_parts, read_pretokenization, specification


@dataclass(frozen=True, eq=False)
class PretokenizedTexts:
    """Texts split into the pre-tokens of a base tokenizer.

    Attributes:
        texts: n texts.
        base: the base tokenizer.
        types: the m pre-token types in the texts.
        codes: index in `types` of every pre-token, texts concatenated, int64.
        starts: offset in `codes` of each text, and the total at the end, int64 [n + 1].
        added: occurrences of added tokens in each text, int64 [n].
    """

    texts: Sequence[str]
    base: Tokenizer
    types: list[str]
    codes: np.ndarray
    starts: np.ndarray
    added: np.ndarray

    @cached_property
    def counts(self) -> np.ndarray:
        """Occurrences of each type, int64 [m]."""
        return np.bincount(self.codes, minlength=len(self.types))

    @cached_property
    def base_tokens(self) -> int:
        """Tokens of all texts under the base tokenizer."""
        return int(self.sum_per_text(segments_of_types(self.base, self.types).lengths).sum())

    def saving(self, tokenizer: Tokenizer) -> float:
        """The share of the base tokenizer's tokens that `tokenizer` saves, 0.0 for empty texts."""
        return 1 - int(self.tokens(tokenizer).sum()) / self.base_tokens if self.base_tokens else 0.0

    def sum_per_text(self, lengths: np.ndarray) -> np.ndarray:
        """Number of tokens of each text, int64 [n], given that of each type, int64 [m]."""
        cumulative = np.concatenate([[0], np.cumsum(lengths[self.codes])])
        sums: np.ndarray = np.diff(cumulative[self.starts]) + self.added
        return sums

    def tokens(self, tokenizer: Tokenizer) -> np.ndarray:
        """Number of tokens of each text under `tokenizer`, without special tokens, int64 [n].

        As a spot check, one text is also encoded as a whole; if the count differs, all texts are encoded.
        """
        if self.texts and splits_like(self.base, tokenizer):
            sums = self.sum_per_text(encode_each(tokenizer, self.types).lengths)
            middle = len(self.texts) // 2
            if sums[middle] == count_tokens_per_text(tokenizer, [self.texts[middle]])[0]:
                return sums
        return count_tokens_per_text(tokenizer, self.texts)


def pretokenize_texts(texts: Sequence[str], base: Tokenizer) -> PretokenizedTexts:
    """Split texts into their pre-tokens under `base`."""
    pretokenization = read_pretokenization(base)
    column = pretokenization.column_splitter(base)(list(texts)).rename("piece")
    pieces = column.explode(empty_as_null=False).to_frame()
    types = pieces.unique(maintain_order=True).with_row_index("code")
    codes = pieces.join(types, on="piece", how="left", maintain_order="left")["code"]
    starts = np.concatenate([[0], np.cumsum(column.list.len().to_numpy().astype(np.int64))])
    added = np.array([sum(pretokenization.count_added_tokens(text).values()) for text in texts], dtype=np.int64)
    return PretokenizedTexts(texts, base, types["piece"].to_list(), codes.to_numpy().astype(np.int64), starts, added)


def splits_like(base: Tokenizer, tokenizer: Tokenizer) -> bool:
    """Whether `tokenizer` first splits text exactly as `base` does."""
    parts = pre_tokenizer_parts(base)
    return (
        bool(parts)
        and pre_tokenizer_parts(tokenizer)[: len(parts)] == parts
        and specification(base.normalizer) == specification(tokenizer.normalizer)
    )


def count_tokens_per_text(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Number of tokens of each text, without special tokens, int64 [n]."""
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
