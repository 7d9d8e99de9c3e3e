"""A candidate for an id, what it must be, and a selection of them."""

from dataclasses import dataclass

import regex

from ivr_dagster.core.tokens.byte_level import text_of

# U+FFFD stands for part of a character, which may become a letter
_LETTERS = regex.compile(r"(?: ?[\p{L}\p{M}\ufffd]+)*")
_DIGIT = regex.compile(r"\p{N}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A string that asks for an id.

    Attributes:
        string: the new token in the byte-level alphabet.
        constituents: ids of the base tokens it replaces, in order; none for a byte that the base has no token for.
        saving: tokens it saves on the train split where it stands once all candidates are joined.
        frequency: how often it stands there.
    """

    string: str
    constituents: tuple[int, ...]
    saving: int
    frequency: int


@dataclass(frozen=True, slots=True)
class Guards:
    """What a new token must be.

    Attributes:
        min_frequency: the least saving on the train split that is worth an id, in tokens.
        min_bytes, max_bytes: its least and greatest length; 0 for no greatest.
        letters_only: only letters and their marks, with single spaces before them.
        join_digits: whether a digit may be joined with anything.
        least_documents: in how many documents of the train split a phrase must stand.
    """

    min_frequency: int = 2
    min_bytes: int = 2
    max_bytes: int = 0
    letters_only: bool = False
    join_digits: bool = True
    least_documents: int = 3

    def may_join(self, string: str) -> bool:
        """Whether this string, or a longer one made of it, may become a token; its least length is left out."""
        if self.max_bytes and len(string) > self.max_bytes:
            return False
        text = text_of(string)
        if self.letters_only and not _LETTERS.fullmatch(text):
            return False
        return self.join_digits or not _DIGIT.search(text)

    def may_be(self, string: str) -> bool:
        """Whether this very string may become a token."""
        whole = not self.letters_only or "\ufffd" not in text_of(string)
        return len(string) >= self.min_bytes and self.may_join(string) and whole


@dataclass(frozen=True)
class Selection:
    """Candidates, and tokens of the counted pre-tokens under the base tokenizer."""

    candidates: list[Candidate]
    tokens_before: int

    @property
    def tokens_after(self) -> int:
        """Tokens once all candidates are in use: savings are counted so that they add up."""
        return self.tokens_before - sum(candidate.saving for candidate in self.candidates)
