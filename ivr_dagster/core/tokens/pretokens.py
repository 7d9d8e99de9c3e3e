"""Pre-tokens: the pieces of text that the base tokenizer's pre-tokenizer yields, each encoded by itself.

What belongs here: reading the pre-tokenizer out of a tokenizer, and splitting text as it does. A pre-tokenizer
that amounts to one pattern is run by `regex` (several times as fast as asking `tokenizers` text by text); any other
one that ends in ByteLevel is run by `tokenizers` itself.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import regex
from tokenizers import Tokenizer

from ivr_dagster.core.errors import InputError
from ivr_dagster.core.tokens.byte_level import string_of

# tokenizers' ByteLevel(use_regex=True), which is GPT-2's own
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits(individual_digits=True) before GPT-2's pattern: a digit ends the piece before it, also for the look-ahead
DIGITS_THEN_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """How a tokenizer cuts text before its model sees it.

    Attributes:
        pattern: one regular expression whose matches are the pre-tokens, or None where there is no such one.
        added_tokens: texts that are cut out first and are tokens by themselves (`<|endoftext|>`), longest first.
    """

    pattern: str | None
    added_tokens: tuple[str, ...]

    def splitter(self, tokenizer: Tokenizer) -> Callable[[str], list[str]]:
        """A function from text to its pre-tokens as text, without added tokens.

        Where no pattern says how, `tokenizer` itself is asked. Pre-tokens are those of the normalised text, where the
        tokenizer normalises.
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
        added = regex.compile("|".join(map(regex.escape, self.added_tokens)))

        def split_between_added_tokens(text: str) -> list[str]:
            if added.search(text) is None:
                return split(text)
            return [piece for part in added.split(text) if part for piece in split(part)]

        return split_between_added_tokens

    def count_added_tokens(self, text: str) -> dict[str, int]:
        """Occurrences of each added token in the text, leftmost and longest first, as tokenizers finds them."""
        if not any(token in text for token in self.added_tokens):
            return {}
        found: dict[str, int] = {}
        for match in regex.finditer("|".join(map(regex.escape, self.added_tokens)), text):
            found[match.group()] = found.get(match.group(), 0) + 1
        return found


def read_pretokenization(tokenizer: Tokenizer) -> PreTokenization:
    """What `tokenizer` does before its model.

    Raises:
        InputError: the tokenizer is not a byte-level one; the message names what was found.
    """
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    parts = _flatten(spec.get("pre_tokenizer"))
    kinds = [part["type"] for part in parts]
    if not parts or parts[-1]["type"] != "ByteLevel" or kinds.count("ByteLevel") > 1:
        raise InputError(
            f"a byte-level tokenizer was asked for, found the pre-tokenizer {' + '.join(kinds) or 'none'}",
            remedy="Take a base model with a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen, SmolLM2 and the like).",
        )
    if spec.get("normalizer") not in (None, {"type": "NFC"}):
        raise InputError(
            f"a tokenizer that takes text as it is was asked for, found the normalizer {spec['normalizer']['type']}",
            remedy="Take a base model whose tokenizer leaves the text unchanged (or NFC).",
        )
    if parts[-1].get("add_prefix_space"):
        raise InputError(
            "a tokenizer without add_prefix_space was asked for: it makes a text's first pre-token depend on its place",
            remedy="Set add_prefix_space to false in tokenizer.json.",
        )
    added = tuple(sorted((token["content"] for token in spec.get("added_tokens", [])), key=len, reverse=True))
    return PreTokenization(_one_pattern(parts), added)


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
        # as the published ones do; the check on a sample (`verify_splitter`) finds those that don't
        if pattern is not None and (before[0]["behavior"] == "Removed") == bool(before[0].get("invert")):
            return str(pattern) if _yields_its_matches(pattern) else None
    return None


def _yields_its_matches(pattern: str) -> bool:
    try:
        return regex.compile(pattern).groups == 0  # `findall` gives groups where there are any
    except regex.error:  # tokenizers' dialect is Oniguruma's
        return False


def verify_splitter(split: Callable[[str], list[str]], tokenizer: Tokenizer, texts: Iterable[str]) -> str | None:
    """The first of `texts` that `split` cuts otherwise than `tokenizer` does, or None.

    `regex` and `tokenizers` carry Unicode tables of different years; whoever splits a corpus by pattern looks at a
    sample of it first and falls back to `tokenizers` where they differ.
    """
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer is not None else text
        expected = [string for string, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]
        if [string_of(piece) for piece in split(text)] != expected:
            return text
    return None
