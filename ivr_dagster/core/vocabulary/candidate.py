"""A candidate for a new token, the requirements that it must meet, and a selection of candidates."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import regex

from ivr_dagster.core.tokenizer.cuts import count_runs
from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.settings import SelectionSettings

# U+FFFD stands for part of a character, which may become a letter
_LETTERS = regex.compile(r"(?: ?[\p{L}\p{M}\ufffd]+)*")
_DIGIT = regex.compile(r"\p{N}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A string that may become a new token.

    Attributes:
        string: the new token in the byte-level alphabet.
        halves: the two tokens whose merge produces it; empty for a phrase, which the pre-tokenizer produces, and for a
            byte that the base has no token for.
        constituents: ids of the base tokens it replaces, in order; empty for a byte without a base token.
        saving: tokens it saves on the train split: one for each merge, also inside longer new tokens.
        frequency: how often it occurs there once all candidates are in use.
    """

    string: str
    halves: tuple[str, ...]
    constituents: tuple[int, ...]
    saving: int
    frequency: int

    @property
    def is_phrase(self) -> bool:
        """Whether the pre-tokenizer produces it."""
        return bool(self.constituents and not self.halves)


def best_candidates(
    candidates: Sequence[Candidate],
    budget: int,
    kept: Collection[str] = (),
    factor: float = 1.0,
    *,
    accepts: Callable[[str], bool] = lambda string: True,
    in_order: bool = False,
) -> list[Candidate]:
    """The candidates that save most, each with its halves, by falling saving.

    Args:
        candidates: halves before the tokens made of them.
        budget: how many to return.
        kept: strings whose saving counts `factor` times in the choice.
        accepts: whether a string may be a new token for its own sake; any other one is only chosen as a half.
        in_order: return them in the order of `candidates` instead.
    """
    preferred = set(kept)
    saving = {c.string: c.saving if accepts(c.string) else 0.0 for c in candidates}
    worth = {string: saved * (factor if string in preferred else 1.0) for string, saved in saving.items()}
    chosen = {candidate.string for candidate in _by_worth(candidates, worth)[:budget]}
    needed: set[str] = set()
    for candidate in reversed(candidates):
        if candidate.string in chosen and (saving[candidate.string] or candidate.string in needed):
            needed.update((candidate.string, *candidate.halves))
    ordered = _with_frequencies([candidate for candidate in candidates if candidate.string in needed])
    return ordered if in_order else _by_worth(ordered, saving)


def _with_frequencies(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with their occurrences if no others are in use."""
    inside: Counter[str] = Counter()
    for candidate in candidates:
        for half in candidate.halves:
            inside[half] += candidate.saving
    return [replace(c, frequency=c.saving - inside[c.string]) if c.halves else c for c in candidates]


def _by_worth(candidates: Sequence[Candidate], worth: Mapping[str, float]) -> list[Candidate]:
    """Candidates by falling worth; a half is worth at least as much as what is made of it, so it comes first."""
    worth = dict(worth)
    for candidate in reversed(candidates):
        for half in candidate.halves:
            if half in worth:
                worth[half] = max(worth[half], worth[candidate.string])
    return sorted(candidates, key=lambda candidate: -worth[candidate.string])


@dataclass(frozen=True)
class Selection:
    """Selected candidates, the most valuable first and halves before what is made of them.

    Attributes:
        candidates: the candidates.
        merge_ranks: position in the order of merges by string.
    """

    candidates: list[Candidate]
    merge_ranks: Mapping[str, int]

    def first(self, number: int) -> "Selection":
        """The `number` most valuable candidates."""
        return replace(self, candidates=_with_frequencies(self.candidates[:number]))

    def in_merge_order(self) -> list[Candidate]:
        """The candidates in the order of their merges."""
        return sorted(self.candidates, key=lambda candidate: self.merge_ranks[candidate.string])

    def merges(self) -> list[tuple[str, str]]:
        """The merges of the candidates in order."""
        return [(c.halves[0], c.halves[1]) for c in self.in_merge_order() if c.halves]


@dataclass(frozen=True)
class CandidateFilter:
    """Which strings may become tokens under these settings; lengths are in bytes."""

    settings: SelectionSettings

    def accepts_part(self, string: str) -> bool:
        """Whether this string may be part of a new token; the minimum length does not apply to parts."""
        if self.settings.max_token_len and len(string) > self.settings.max_token_len:
            return False
        if count_runs(string) > 1:  # the pre-tokenizer of a Unigram cuts strings with two runs (`----+----`)
            return False
        text = text_of(string)
        if self.settings.letters_only and not _LETTERS.fullmatch(text):
            return False
        return self.settings.join_digits or not _DIGIT.search(text)

    def accepts(self, string: str) -> bool:
        """Whether this string may be a new token for its own sake."""
        if self.settings.letters_only and "\ufffd" in text_of(string):
            return False
        return len(string) >= self.settings.min_token_len and self.accepts_part(string)
