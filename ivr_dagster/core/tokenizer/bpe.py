"""The base tokenizer as data: strings by id and merges by rank, read from a `tokenizers.Tokenizer`."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, is_byte_level
from ivr_dagster.errors import InputError


@dataclass(frozen=True, eq=False)
class ByteLevelBPE:
    """A byte-level BPE vocabulary of V entries.

    Attributes:
        strings: the token of every id, V entries, in the byte-level alphabet; added tokens unchanged.
        merges: (left id, right id, resulting id), by merge rank.
        added_ids: ids of special and other added tokens, which no merge produces.
        ignores_merges: whether a pre-token that is in the vocabulary is never split, whatever the merges (Llama 3).
    """

    strings: tuple[str, ...]
    merges: tuple[tuple[int, int, int], ...]
    added_ids: frozenset[int]
    ignores_merges: bool = False

    @property
    def size(self) -> int:
        """V: the number of ids, added tokens included."""
        return len(self.strings)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of every token's string."""
        return {string: token_id for token_id, string in enumerate(self.strings)}

    @cached_property
    def model_strings(self) -> tuple[str, ...]:
        """The model's tokens in the byte-level alphabet, without added tokens."""
        return tuple(s for i, s in enumerate(self.strings) if i not in self.added_ids and is_byte_level(s))

    def extended(self, strings: Sequence[str], merges: Iterable[tuple[str, str]]) -> "ByteLevelBPE":
        """This vocabulary with further tokens, ids V, V + 1, ..., and their merges after all others."""
        ids = self.ids | {string: token_id for token_id, string in enumerate(strings, start=self.size)}
        further = tuple((ids[left], ids[right], ids[left + right]) for left, right in merges)
        return replace(self, strings=(*self.strings, *strings), merges=(*self.merges, *further))

    def model(self) -> models.BPE:
        """The BPE as a model of `tokenizers`, which encodes byte-level strings."""
        merges = [(self.strings[left], self.strings[right]) for left, right, _ in self.merges]
        return models.BPE(dict(self.ids), merges, ignore_merges=self.ignores_merges)

    @cached_property
    def merge_of(self) -> dict[int, tuple[int, int, int]]:
        """(merge rank, left id, right id) of the merge that produces an id; bytes and added tokens have none.

        Vocabularies converted from ranks alone (Llama 3) have several merges for one token. The result is then the
        merge that completes the token when BPE encodes its string, or the first merge if BPE never produces it.
        """
        producers: defaultdict[int, list[int]] = defaultdict(list)
        for rank, (_, _, token_id) in enumerate(self.merges):
            producers[token_id].append(rank)
        rank_of = {(left, right): rank for rank, (left, right, _) in reversed([*enumerate(self.merges)])}
        return {
            token_id: (rank, *self.merges[rank][:2])
            for token_id, ranks in producers.items()
            for rank in (ranks[0] if len(ranks) == 1 else self._final_rank(token_id, rank_of) or ranks[0],)
        }

    @cached_property
    def merges_by_length(self) -> tuple[tuple[int, int, int], ...]:
        """(id, left id, right id) of every merged token, ordered so that both halves precede the token."""
        by_length = sorted(self.merge_of, key=lambda token_id: len(self.strings[token_id]))
        return tuple((token_id, *self.merge_of[token_id][1:]) for token_id in by_length)

    def _final_rank(self, token_id: int, rank_of: Mapping[tuple[int, int], int]) -> int | None:
        """Rank of the merge that completes a token when BPE encodes its string, None if BPE does not produce it."""
        if any(character not in self.ids for character in self.strings[token_id]):
            return None
        parts = [self.ids[character] for character in self.strings[token_id]]
        while len(parts) > 1:
            ranks = [rank_of.get(pair, len(self.merges)) for pair in pairwise(parts)]
            rank = min(ranks)
            if rank == len(self.merges):
                return None
            index = ranks.index(rank)
            parts[index : index + 2] = [self.merges[rank][2]]
        return rank if parts == [token_id] else None

    @cached_property
    def ranks(self) -> np.ndarray:
        """Merge rank by id, int64 [V]: -1 for bytes and added tokens, `len(merges)` for others without a merge."""
        ranks = np.full(self.size, len(self.merges), dtype=np.int64)
        for token_id, (rank, _, _) in self.merge_of.items():
            ranks[token_id] = rank
        ranks[[i for i, string in enumerate(self.strings) if string in CHARACTER_TO_BYTE or i in self.added_ids]] = -1
        return ranks


def read_bpe(tokenizer: Tokenizer) -> ByteLevelBPE:
    """Read the BPE model of `tokenizer`.

    Raises:
        InputError: its model is not a byte-level BPE, or ids are missing.
    """
    check_byte_level(tokenizer)
    spec = json.loads(tokenizer.to_str())
    model = spec["model"]
    ids = model["vocab"]
    return ByteLevelBPE(
        strings=tuple(strings_by_id(tokenizer)),
        merges=tuple((ids[left], ids[right], ids[left + right]) for left, right in model["merges"]),
        added_ids=frozenset(token["id"] for token in spec["added_tokens"]),
        ignores_merges=bool(model.get("ignore_merges")),
    )


def check_byte_level(tokenizer: Tokenizer) -> None:
    """Check that a tokenizer's model is a byte-level BPE, without reading its vocabulary.

    Raises:
        InputError: the model is of another kind.
    """
    model: Any = tokenizer.model
    kind = type(model).__name__
    if kind == "BPE" and not getattr(model, "byte_fallback", False):
        return
    found = "a BPE over characters with byte fallback (SentencePiece)" if kind == "BPE" else f"a {kind} model"
    raise InputError(
        f"expected a byte-level BPE tokenizer, found {found}",
        remedy="Choose a base model with a byte-level BPE tokenizer, such as GPT-2, Llama 3, Qwen or SmolLM2.",
    )


def strings_by_id(tokenizer: Tokenizer) -> list[str]:
    """The token of every id, V entries, added tokens included.

    Raises:
        InputError: ids are missing.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    missing = sorted(set(range(len(vocabulary))) - set(vocabulary.values()))
    if missing:
        raise InputError(
            f"the tokenizer has {len(vocabulary):,} tokens, but no token with id {missing[0]}",
            remedy="Add placeholder tokens for the missing ids.",
        )
    return sorted(vocabulary, key=lambda string: vocabulary[string])
