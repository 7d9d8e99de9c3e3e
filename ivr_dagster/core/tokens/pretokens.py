"""Pre-tokens: the pieces of text that a tokenizer's pre-tokenizer yields. BPE encodes each one independently.

Reads the pre-tokenizer from a tokenizer and splits text as it does. A pre-tokenizer that is equivalent to one regular
expression runs in `polars` on many texts at once if its look-ahead can be avoided, otherwise in `regex`. Any other one
that ends in ByteLevel runs in `tokenizers`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
import regex
from tokenizers import AddedToken, Tokenizer

from ivr_dagster.errors import InputError

Split = Callable[[str], list[str]]

# ByteLevel(use_regex=True) of tokenizers: GPT-2's pattern
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits(individual_digits=True) before GPT-2's pattern: a digit ends the piece before it, also for the look-ahead
DIGITS_THEN_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
# Ends of known patterns. Rust's regular expressions, which polars uses, have no look-ahead.
_SPACE_BEFORE_WORD = r"\s+(?!\S)|\s+"
_SPACE_BEFORE_WORD_OR_DIGIT = r"\s+(?![^\s\p{N}])|\s+"
# Marks where whitespace is cut. `regex` splits texts that contain it.
_MARK = "\x00"
# Characters of text that are split at once.
BATCH_CHARACTERS = 8_000_000


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """How a tokenizer splits text before its model is applied.

    Attributes:
        pattern: a regular expression whose matches are the pre-tokens, or None if no single one is equivalent.
        added_tokens: added tokens (`<|endoftext|>`), which are cut out of the text first; longest first.
        added_patterns: regular expressions of these tokens with the conditions under which they match.
    """

    pattern: str | None
    added_tokens: tuple[str, ...]
    added_patterns: tuple[str, ...]

    def splitter(self, tokenizer: Tokenizer) -> Split:
        """A function from a text to its pre-tokens, without added tokens.

        `tokenizer` normalizes the text, and splits it if there is no pattern.
        """
        split = self._plain_splitter(tokenizer)
        if tokenizer.normalizer is not None:
            split = _compose(split, tokenizer.normalizer.normalize_str)
        if not self.added_tokens:
            return split
        added = regex.compile("|".join(self.added_patterns))

        def split_between_added_tokens(text: str) -> list[str]:
            if added.search(text) is None:
                return split(text)
            return [piece for part in added.split(text) if part for piece in split(part)]

        return split_between_added_tokens

    def _plain_splitter(self, tokenizer: Tokenizer) -> Split:
        if self.pattern is not None:
            find_all: Split = regex.compile(self.pattern).findall
            return find_all
        pre_tokenizer = tokenizer.pre_tokenizer
        return lambda text: [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]

    def column_splitter(self, tokenizer: Tokenizer) -> Callable[[list[str]], pl.Series]:
        """A function from texts to a column with the list of pre-tokens of each, without added tokens."""
        split = self.splitter(tokenizer)
        patterns = None
        if self.pattern is not None and tokenizer.normalizer is None:
            patterns = _without_look_ahead(self.pattern)
        if patterns is None:
            return lambda texts: pl.Series([split(text) for text in texts], dtype=pl.List(pl.String))
        cuts, pieces = patterns
        expression = pl.col("text").str.replace_all(cuts, f"${{1}}{_MARK}${{2}}").str.extract_all(pieces)

        def split_with_polars(texts: list[str]) -> pl.Series:
            frame = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}).select(expression)
            special = [split(text) if _MARK in text or self.has_added_token(text) else None for text in texts]
            if any(pieces is not None for pieces in special):
                frame = frame.select(pl.coalesce(pl.Series("special", special, dtype=pl.List(pl.String)), "text"))
            return frame.to_series()

        return split_with_polars

    def has_added_token(self, text: str) -> bool:
        """Whether the text contains the string of an added token."""
        return any(token in text for token in self.added_tokens)

    def count_added_tokens(self, text: str) -> dict[str, int]:
        """Occurrences of each added token in the text, leftmost and longest first, as `tokenizers` finds them."""
        if not self.has_added_token(text):
            return {}
        matches = regex.finditer("|".join(f"({pattern})" for pattern in self.added_patterns), text)
        return dict(Counter(self.added_tokens[(match.lastindex or 0) - 1] for match in matches))


def _compose(split: Split, normalize: Callable[[str], str]) -> Split:
    return lambda text: split(normalize(text))


def _without_look_ahead(pattern: str) -> tuple[str, str] | None:
    """Two patterns that together split as `pattern` does: where to cut whitespace first, and then the pieces.

    `\\s+(?!\\S)` leaves the last whitespace before a word to the word. So a mark is inserted before that whitespace.
    No piece may contain the mark, so `\\s+` ends there. If `\\s*[\\r\\n]+` matches whitespace up to the last line
    end, only the whitespace after it is cut.

    Returns:
        Both patterns in Rust's dialect; None if the pattern looks ahead in another way or is not valid in that dialect.
    """
    # possessive quantifiers, which Rust reads as two repetitions
    if regex.search(r"[?*+}]\+", regex.sub(r"\\p\{\w+\}", "x", pattern)):
        return None
    if pattern.endswith(_SPACE_BEFORE_WORD):
        white = r"[^\S\r\n]" if r"\s*[\r\n]+|" in pattern else r"\s"
        cuts, pieces = rf"({white})({white}\S)", pattern.removesuffix(_SPACE_BEFORE_WORD) + r"\s+"
    elif pattern.endswith(_SPACE_BEFORE_WORD_OR_DIGIT):
        cuts, pieces = r"(\s)(\s[^\s\p{N}])", pattern.removesuffix(_SPACE_BEFORE_WORD_OR_DIGIT) + r"\s+"
    else:
        return None
    pieces = pieces.replace("[^", r"[^\x00")
    try:
        pl.Series([""]).str.extract_all(pieces)
    except pl.exceptions.ComputeError:
        return None
    return cuts, pieces


def iter_batches(texts: Iterable[str], min_characters: int = BATCH_CHARACTERS) -> Iterator[list[str]]:
    """Yields texts in order, in batches of at least `min_characters`; the last batch may be smaller."""
    batch: list[str] = []
    total = 0
    for text in texts:
        batch.append(text)
        total += len(text)
        if total >= min_characters:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def read_pretokenization(tokenizer: Tokenizer) -> PreTokenization:
    """How `tokenizer` splits text before its model is applied.

    Raises:
        InputError: the tokenizer is not byte-level, or changes the text.
    """
    parts = pre_tokenizer_parts(tokenizer)
    normalizer = specification(tokenizer.normalizer)
    kinds = [part["type"] for part in parts]
    if not parts or parts[-1]["type"] != "ByteLevel" or kinds.count("ByteLevel") > 1:
        raise InputError(
            f"a byte-level tokenizer is required, found the pre-tokenizer {' + '.join(kinds) or 'none'}",
            remedy="Use a base model with a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen, SmolLM2, …).",
        )
    if normalizer not in (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": []}):
        raise InputError(
            f"a tokenizer without a normalizer (or with NFC) is required, found {normalizer['type']}",
            remedy="Use a base model whose tokenizer does not change the text.",
        )
    if parts[-1].get("add_prefix_space"):
        raise InputError(
            "a tokenizer without add_prefix_space is required: with it, the first pre-token of a text is special",
            remedy="Set add_prefix_space to false in tokenizer.json.",
        )
    added = sorted(tokenizer.get_added_tokens_decoder().values(), key=lambda token: len(token.content), reverse=True)
    return PreTokenization(
        _equivalent_pattern(parts),
        tuple(token.content for token in added),
        tuple(map(_added_token_pattern, added)),
    )


def _added_token_pattern(token: AddedToken) -> str:
    pattern = regex.escape(token.content)
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return (r"\s*" if token.lstrip else "") + pattern + (r"\s*" if token.rstrip else "")


def pre_tokenizer_parts(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The pre-tokenizers of a tokenizer as in tokenizer.json, sequences flattened, in order of application."""
    return _flatten(specification(tokenizer.pre_tokenizer))


def specification(part: Any) -> dict[str, Any] | None:
    """A pre-tokenizer, normalizer or decoder as in tokenizer.json."""
    return None if part is None else dict(json.loads(part.__getstate__()))


def _flatten(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [leaf for part in pre_tokenizer["pretokenizers"] for leaf in _flatten(part)]
    return [pre_tokenizer]


def _equivalent_pattern(parts: list[dict[str, Any]]) -> str | None:
    *before, byte_level = parts
    if byte_level.get("use_regex", True):
        if not before:
            return GPT2_PATTERN
        if len(before) == 1 and before[0]["type"] == "Digits" and before[0].get("individual_digits"):
            return DIGITS_THEN_GPT2_PATTERN
        return None
    if len(before) != 1 or before[0]["type"] != "Split" or before[0]["behavior"] not in ("Isolated", "Removed"):
        return None
    pattern = before[0]["pattern"].get("Regex")
    # With "Isolated", text between matches is a pre-token too, so the pattern must match everywhere, as published
    # patterns do. The verification on a sample in `PretokenCounter` detects those that do not.
    if pattern is None or (before[0]["behavior"] == "Removed") != bool(before[0].get("invert")):
        return None
    try:
        has_groups = regex.compile(pattern).groups > 0  # `findall` would return the groups
    except regex.error:  # tokenizers uses Oniguruma's dialect
        return None
    return None if has_groups else str(pattern)
