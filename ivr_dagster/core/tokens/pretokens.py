"""Pre-tokens: the pieces of text that the base tokenizer's pre-tokenizer yields, each encoded by itself.

What belongs here: reading the pre-tokenizer out of a tokenizer, and splitting text as it does. A pre-tokenizer
that amounts to one pattern is run by `polars` on many texts at once where its look-ahead can be done without, else by
`regex`; any other one that ends in ByteLevel is run by `tokenizers` itself.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import polars as pl
import regex
from tokenizers import AddedToken, Tokenizer

from ivr_dagster.errors import InputError

T = TypeVar("T")

# tokenizers' ByteLevel(use_regex=True), which is GPT-2's own
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits(individual_digits=True) before GPT-2's pattern: a digit ends the piece before it, also for the look-ahead
DIGITS_THEN_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
# what patterns end with; Rust's regular expressions, which `polars` runs, have no look-ahead
_BEFORE_A_WORD = r"\s+(?!\S)|\s+"
_BEFORE_A_WORD_OR_DIGIT = r"\s+(?![^\s\p{N}])|\s+"
# marks where a run of white space is cut; texts that hold it are split by `regex`
_MARK = "\x00"
# of text that is split at once
BATCH_CHARACTERS = 8_000_000


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """How a tokenizer cuts text before its model sees it.

    Attributes:
        pattern: one regular expression whose matches are the pre-tokens, or None where there is no such one.
        added_tokens: texts that are cut out first and are tokens by themselves (`<|endoftext|>`), longest first.
        added_patterns: what of a text each of them takes: not inside of words, with the white space beside it.
    """

    pattern: str | None
    added_tokens: tuple[str, ...]
    added_patterns: tuple[str, ...]

    def splitter(self, tokenizer: Tokenizer) -> Callable[[str], list[str]]:
        """A function from text to its pre-tokens as text, without added tokens.

        Where no pattern says how, `tokenizer` itself is asked. Pre-tokens are those of the normalized text, where the
        tokenizer normalizes.
        """
        split: Callable[[str], list[str]]
        if self.pattern is not None:
            split = regex.compile(self.pattern).findall
        else:
            pre_tokenizer = tokenizer.pre_tokenizer

            def split_by_tokenizers(text: str) -> list[str]:
                spans = [span for _, span in pre_tokenizer.pre_tokenize_str(text)]
                return [text[start:end] for start, end in spans]

            split = split_by_tokenizers
        if tokenizer.normalizer is not None:
            normalize, split_normalized = tokenizer.normalizer.normalize_str, split

            def split_after_normalizing(text: str) -> list[str]:
                return split_normalized(normalize(text))

            split = split_after_normalizing
        if not self.added_tokens:
            return split
        added = regex.compile("|".join(self.added_patterns))

        def split_between_added_tokens(text: str) -> list[str]:
            if added.search(text) is None:
                return split(text)
            return [piece for part in added.split(text) if part for piece in split(part)]

        return split_between_added_tokens

    def column_splitter(self, tokenizer: Tokenizer) -> Callable[[list[str]], pl.Series]:
        """A function from texts to their pre-tokens, without added tokens, as a column of lists of strings."""
        split = self.splitter(tokenizer)
        known = None if self.pattern is None or tokenizer.normalizer is not None else _without_look_ahead(self.pattern)

        def split_one_by_one(texts: list[str]) -> pl.Series:
            return pl.Series([split(text) for text in texts], dtype=pl.List(pl.String))

        if known is None:
            return split_one_by_one
        cuts, pieces = known
        expression = pl.col("text").str.replace_all(cuts, f"${{1}}{_MARK}${{2}}").str.extract_all(pieces)

        def split_at_once(texts: list[str]) -> pl.Series:
            frame = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}).select(expression)
            odd = [split(text) if _MARK in text or self.holds_added_token(text) else None for text in texts]
            if any(pieces is not None for pieces in odd):
                frame = frame.select(pl.coalesce(pl.Series("odd", odd, dtype=pl.List(pl.String)), "text"))
            return frame.to_series()

        return split_at_once

    def holds_added_token(self, text: str) -> bool:
        """Whether an added token is written out in the text."""
        return any(token in text for token in self.added_tokens)

    def count_added_tokens(self, text: str) -> dict[str, int]:
        """Occurrences of each added token in the text, leftmost and longest first, as tokenizers finds them."""
        if not self.holds_added_token(text):
            return {}
        matches = regex.finditer("|".join(f"({pattern})" for pattern in self.added_patterns), text)
        return dict(Counter(self.added_tokens[(match.lastindex or 0) - 1] for match in matches))


def _without_look_ahead(pattern: str) -> tuple[str, str] | None:
    """Two patterns that split as one does: where to cut runs of white space first, and the pieces then.

    `\\s+(?!\\S)` leaves the last white space before a word to the word. So a mark is put before it, which no piece may
    hold, and `\\s+` ends there by itself. Where `\\s*[\\r\\n]+` takes white space up to the last line end, only what
    follows that is cut.

    Returns:
        Both in Rust's dialect, None where the pattern looks ahead in another way or is not of that dialect.
    """
    # possessive; Rust reads it as two repetitions
    if regex.search(r"[?*+}]\+", regex.sub(r"\\p\{\w+\}", "x", pattern)):
        return None
    if pattern.endswith(_BEFORE_A_WORD):
        white = r"[^\S\r\n]" if r"\s*[\r\n]+|" in pattern else r"\s"
        cuts, pieces = rf"({white})({white}\S)", pattern.removesuffix(_BEFORE_A_WORD) + r"\s+"
    elif pattern.endswith(_BEFORE_A_WORD_OR_DIGIT):
        cuts, pieces = r"(\s)(\s[^\s\p{N}])", pattern.removesuffix(_BEFORE_A_WORD_OR_DIGIT) + r"\s+"
    else:
        return None
    pieces = pieces.replace("[^", r"[^\x00")
    try:
        pl.Series([""]).str.extract_all(pieces)
    except pl.exceptions.ComputeError:
        return None
    return cuts, pieces


def batches_of(texts: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Texts in order in batches of at least `most` by `size`, the last but for what is left."""
    batch: list[T] = []
    total = 0
    for text in texts:
        batch.append(text)
        total += size(text)
        if total >= most:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def read_pretokenization(tokenizer: Tokenizer) -> PreTokenization:
    """What `tokenizer` does before its model.

    Raises:
        InputError: the tokenizer is not a byte-level one; the message names what was found.
    """
    parts = parts_of(tokenizer)
    normalizer = specification(tokenizer.normalizer)
    kinds = [part["type"] for part in parts]
    if not parts or parts[-1]["type"] != "ByteLevel" or kinds.count("ByteLevel") > 1:
        raise InputError(
            f"a byte-level tokenizer was asked for, found the pre-tokenizer {' + '.join(kinds) or 'none'}",
            remedy="Take a base model with a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen, SmolLM2 and the like).",
        )
    if normalizer not in (None, {"type": "NFC"}):
        raise InputError(
            f"a tokenizer that takes text as it is was asked for, found the normalizer {normalizer['type']}",
            remedy="Take a base model whose tokenizer leaves the text unchanged (or NFC).",
        )
    if parts[-1].get("add_prefix_space"):
        raise InputError(
            "a tokenizer without add_prefix_space was asked for: it makes a text's first pre-token depend on its place",
            remedy="Set add_prefix_space to false in tokenizer.json.",
        )
    added = sorted(tokenizer.get_added_tokens_decoder().values(), key=lambda token: len(token.content), reverse=True)
    return PreTokenization(
        _one_pattern(parts), tuple(token.content for token in added), tuple(map(_pattern_of_added, added))
    )


def _pattern_of_added(token: AddedToken) -> str:
    pattern = regex.escape(token.content)
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return (r"\s*" if token.lstrip else "") + pattern + (r"\s*" if token.rstrip else "")


def parts_of(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The pre-tokenizers of a tokenizer as they stand in tokenizer.json, in the order in which they work."""
    return _flatten(specification(tokenizer.pre_tokenizer))


def specification(part: Any) -> dict[str, Any] | None:
    """A tokenizer's pre-tokenizer, normalizer or decoder as it stands in tokenizer.json, without the rest of that."""
    return None if part is None else dict(json.loads(part.__getstate__()))


def _flatten(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [leaf for part in pre_tokenizer["pretokenizers"] for leaf in _flatten(part)]
    return [pre_tokenizer]


def _one_pattern(parts: list[dict[str, Any]]) -> str | None:
    *before, byte_level = parts
    if byte_level.get("use_regex", True):
        if not before:
            return GPT2_PATTERN
        if len(before) == 1 and before[0]["type"] == "Digits" and before[0].get("individual_digits"):
            return DIGITS_THEN_GPT2_PATTERN
        return None
    if len(before) == 1 and before[0]["type"] == "Split" and before[0]["behavior"] in ("Isolated", "Removed"):
        pattern = before[0]["pattern"].get("Regex")
        # text between the matches is a pre-token too when isolated: one pattern says so only if it matches everywhere,
        # as the published ones do; the check on a sample (`PretokenCounter`) finds those that don't
        if pattern is not None and (before[0]["behavior"] == "Removed") == bool(before[0].get("invert")):
            return str(pattern) if _yields_its_matches(pattern) else None
    return None


def _yields_its_matches(pattern: str) -> bool:
    try:
        return regex.compile(pattern).groups == 0  # `findall` gives groups where there are any
    except regex.error:  # tokenizers' dialect is Oniguruma's
        return False
