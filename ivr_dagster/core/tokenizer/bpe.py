"""The base tokenizer as data: strings by id, merges by rank, what must never change.

What belongs here: reading a byte-level BPE out of a `tokenizers.Tokenizer`. Encoding stays with the libraries.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, is_byte_level
from ivr_dagster.errors import InputError


@dataclass(frozen=True, eq=False)
class ByteLevelBPE:
    """A byte-level BPE vocabulary of V entries.

    Attributes:
        strings: the token of every id, V entries, in the byte-level alphabet (added tokens as they are).
        merges: (left id, right id, id of what they make), by merge rank.
        added_ids: ids of special and other added tokens; no model ever merges into them.
        ignores_merges: whether a whole pre-token that is a token stays one, whatever the merges say (Llama 3).
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
        """Tokens of the model itself, in the byte-level alphabet: without added ones, which are cut out beforehand."""
        return tuple(s for i, s in enumerate(self.strings) if i not in self.added_ids and is_byte_level(s))

    @cached_property
    def merge_of(self) -> dict[int, tuple[int, int, int]]:
        """(merge rank, left id, right id) of the merge that makes an id; bytes and added tokens have none.

        Where several merges make the same token, as in vocabularies converted from ranks alone (Llama 3), it is the
        one by which BPE arrives at the token's own string, or the first if it never does.
        """
        makers: defaultdict[int, list[int]] = defaultdict(list)
        for rank, (_, _, made) in enumerate(self.merges):
            makers[made].append(rank)
        rank_of = {(left, right): rank for rank, (left, right, _) in reversed([*enumerate(self.merges)])}
        return {
            made: (rank, *self.merges[rank][:2])
            for made, ranks in makers.items()
            for rank in (ranks[0] if len(ranks) == 1 else self._last_rank(made, rank_of) or ranks[0],)
        }

    @cached_property
    def halves_first(self) -> tuple[tuple[int, int, int], ...]:
        """(id, left id, right id) of all that merges make, such that both halves come before what they make."""
        by_length = sorted(self.merge_of, key=lambda made: len(self.strings[made]))  # whatever their ranks
        return tuple((made, *self.merge_of[made][1:]) for made in by_length)

    def _last_rank(self, token: int, rank_of: Mapping[tuple[int, int], int]) -> int | None:
        """Rank of the merge that completes `token` when BPE encodes its string, None where it does not."""
        if any(character not in self.ids for character in self.strings[token]):
            return None
        parts = [self.ids[character] for character in self.strings[token]]
        while len(parts) > 1:
            ranks = [rank_of.get(pair, len(self.merges)) for pair in pairwise(parts)]
            rank = min(ranks)
            if rank == len(self.merges):
                return None
            place = ranks.index(rank)
            parts[place : place + 2] = [self.merges[rank][2]]
        return rank if parts == [token] else None

    @cached_property
    def ranks(self) -> np.ndarray:
        """Merge rank by id, int64 [V]: -1 for bytes and added tokens, `len(merges)` for tokens that no merge makes."""
        ranks = np.full(self.size, len(self.merges), dtype=np.int64)
        for token_id, (rank, _, _) in self.merge_of.items():
            ranks[token_id] = rank
        ranks[[i for i, string in enumerate(self.strings) if string in CHARACTER_TO_BYTE or i in self.added_ids]] = -1
        return ranks


def read_bpe(tokenizer: Tokenizer) -> ByteLevelBPE:
    """The BPE inside `tokenizer`.

    Raises:
        InputError: its model is not a BPE, or its ids have holes.
    """
    spec = json.loads(tokenizer.to_str())
    model = spec["model"]
    _check_kind(model["type"], bool(model.get("byte_fallback")))
    strings = strings_by_id(tokenizer)
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    ids = model["vocab"]
    merges = tuple((ids[left], ids[right], ids[left + right]) for left, right in pairs)
    added = frozenset(token["id"] for token in spec["added_tokens"])
    return ByteLevelBPE(tuple(strings), merges, added, bool(model.get("ignore_merges")))


def check_byte_level(tokenizer: Tokenizer) -> None:
    """See, without reading its vocabulary, that a tokenizer's model may be a byte-level BPE.

    Raises:
        InputError: it is of another kind.
    """
    model: Any = tokenizer.model
    _check_kind(type(model).__name__, bool(getattr(model, "byte_fallback", False)))


def _check_kind(kind: str, byte_fallback: bool) -> None:
    found = ""
    if kind != "BPE":
        found = f"a {kind} model"
    elif byte_fallback:
        found = "a BPE over characters with byte fallback (SentencePiece)"
    if found:
        raise InputError(
            f"a byte-level BPE tokenizer was asked for, found {found}",
            remedy="Take a base model with a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen, SmolLM2 and the like).",
        )


def strings_by_id(tokenizer: Tokenizer) -> list[str]:
    """The token of every id, V entries, added tokens included.

    Raises:
        InputError: the ids have holes.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    holes = sorted(set(range(len(vocabulary))) - set(vocabulary.values()))
    if holes:
        raise InputError(
            f"the tokenizer's {len(vocabulary):,} ids leave holes, the first at {holes[0]}",
            remedy="Add placeholder tokens at the missing ids.",
        )
    return sorted(vocabulary, key=lambda string: vocabulary[string])
