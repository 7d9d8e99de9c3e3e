"""A candidate for a new token, the requirements that it must meet, and a selection of candidates."""

from dataclasses import dataclass

import regex

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
        constituents: ids of the base tokens it replaces, in order; empty for a byte that the base has no token for.
        saving: tokens it saves on the train split once all candidates are in use.
        frequency: how often it occurs there.
    """

    string: str
    constituents: tuple[int, ...]
    saving: int
    frequency: int


@dataclass(frozen=True)
class Selection:
    """Candidates, and the tokens of the counted pre-tokens under the base tokenizer."""

    candidates: list[Candidate]
    tokens_before: int

    @property
    def tokens_after(self) -> int:
        """Tokens with all candidates in use; savings are counted so that they add up."""
        return self.tokens_before - sum(candidate.saving for candidate in self.candidates)


@dataclass(frozen=True)
class CandidateFilter:
    """Which strings may become tokens under these settings; lengths are in bytes."""

    settings: SelectionSettings

    def accepts_part(self, string: str) -> bool:
        """Whether this string may be part of a new token; the minimum length does not apply to parts."""
        if self.settings.max_token_len and len(string) > self.settings.max_token_len:
            return False
        text = text_of(string)
        if self.settings.letters_only and not _LETTERS.fullmatch(text):
            return False
        return self.settings.join_digits or not _DIGIT.search(text)

    def accepts(self, string: str) -> bool:
        """Whether this string may be a new token."""
        if self.settings.letters_only and "\ufffd" in text_of(string):
            return False
        return len(string) >= self.settings.min_token_len and self.accepts_part(string)
