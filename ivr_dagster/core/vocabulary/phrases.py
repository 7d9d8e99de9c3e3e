"""Phrases: new tokens across pre-tokens (" of the"), found by counting and produced by the pre-tokenizer.

A token across pre-tokens can only occur if the pre-tokenizer yields its text as one piece. It does if its pattern tries
the phrases first; a look-ahead ensures that a phrase ends where its last pre-token ends.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import regex
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.trie import trie_pattern
from ivr_dagster.core.tokens.byte_level import whole_text
from ivr_dagster.core.tokens.pretokens import read_pretokenization

LONGEST_PHRASE = 4  # pre-tokens; longer ones are rarely common to many documents
# in patterns like Llama 3's, line breaks are separate pre-tokens
LINE_BREAKS = r"[\r\n]"

Gram = tuple[int, ...]  # pre-token types by number


@dataclass(frozen=True, slots=True)
class Phrase:
    """Neighboring pre-tokens, the tokens they save on the train split, and their occurrences without overlap."""

    pretokens: tuple[str, ...]
    saving: int
    frequency: int

    @property
    def text(self) -> str:
        """The phrase as it occurs in text."""
        return "".join(self.pretokens)


def select_phrases(
    texts: Iterable[str],
    split: Callable[[str], list[str]],
    length_of: Callable[[str], int],
    *,
    budget: int,
    min_saving: int,
    is_allowed: Callable[[str], bool],
    least_documents: int = 3,
    kept: Sequence[str] = (),
) -> list[Phrase]:
    """Up to `budget` phrases of two to four pre-tokens by falling saving.

    All n-grams are counted in one pass. The best by their overlapping counts, three times the budget, are then counted
    together without overlap, leftmost and longest first, as the pre-tokenizer matches them. The ones that save most
    are counted once more, without the others.

    Args:
        texts: the train split.
        split: splits a text into pre-tokens.
        length_of: tokens of a pre-token with the vocabulary so far.
        budget: maximum number of phrases.
        min_saving: tokens that a phrase must save.
        is_allowed: whether a text may become a new token.
        least_documents: minimum number of documents that contain a phrase.
        kept: phrases that are considered in addition to the budget.
    """
    numbers: dict[str, int] = {}
    documents = [
        np.array([numbers.setdefault(piece, len(numbers)) for piece in split(text)], np.uint32) for text in texts
    ]
    types = list(numbers)
    lengths = np.array([length_of(piece) for piece in types], dtype=np.int64)
    ranked: list[tuple[int, Gram]] = []
    for size in range(2, LONGEST_PHRASE + 1):
        ranked += _frequent_grams(documents, lengths, size, min_saving, least_documents)
    ranked.sort(key=lambda item: (-item[0], item[1]))
    # the same text may come from different pre-tokens, depending on what follows it
    chosen: dict[str, list[Gram]] = {text: [] for text in kept}
    max_chosen = len(chosen) + 3 * budget
    for _, gram in ranked:
        text = "".join(types[n] for n in gram)
        if text in chosen or (len(chosen) < max_chosen and is_allowed(text)):
            chosen.setdefault(text, []).append(gram)
    for limit in (budget + len(kept), None):
        counts = _count_without_overlap(documents, [gram for grams in chosen.values() for gram in grams])
        saving = {
            text: sum(counts[gram] * (int(lengths[list(gram)].sum()) - 1) for gram in grams)
            for text, grams in chosen.items()
        }
        best = sorted(chosen, key=lambda text: (-saving[text], text))
        best = [text for text in best if saving[text] >= min_saving or text in kept][:limit]
        chosen = {text: chosen[text] for text in best}
    return [
        Phrase(tuple(types[n] for n in grams[0]), saving[text], sum(counts[gram] for gram in grams))
        for text, grams in chosen.items()
        if saving[text] >= min_saving
    ]


def _frequent_grams(
    documents: list[np.ndarray], lengths: np.ndarray, size: int, min_saving: int, least_documents: int
) -> list[tuple[int, Gram]]:
    """(saving by overlapping count, n-gram) of the n-grams that occur in enough documents and save enough."""
    if not documents:
        return []
    tokens = np.concatenate(documents)
    owner = np.repeat(np.arange(len(documents), dtype=np.uint32), [len(document) for document in documents])
    count = max(len(tokens) - size + 1, 0)
    names = [f"t{n}" for n in range(size)]
    grams = pl.LazyFrame({name: tokens[n : n + count] for n, name in enumerate(names)} | {"document": owner[:count]})
    grams = grams.filter(pl.Series(owner[:count] == owner[size - 1 :]))  # both ends in one document
    saves = pl.sum_horizontal(pl.lit(pl.Series(lengths)).gather(pl.col(name)) for name in names) - 1
    found = (
        grams.group_by(names)
        .agg(count=pl.len(), first=pl.col("document").min(), last=pl.col("document").max())
        .filter((pl.col("first") != pl.col("last")) if least_documents > 1 else pl.lit(True))
        .with_columns(saving=saves * pl.col("count"))
        .filter(pl.col("saving") >= min_saving)
    )
    if least_documents > 2:
        spread = grams.group_by(names).agg(documents=pl.col("document").n_unique())
        found = found.join(spread, on=names).filter(pl.col("documents") >= least_documents)
    return [(saving, tuple(gram)) for *gram, saving in found.select(*names, "saving").collect().rows()]


def _count_without_overlap(documents: list[np.ndarray], chosen: Sequence[Gram]) -> Counter[Gram]:
    wanted, starts = set(chosen), {gram[0] for gram in chosen}
    sizes = sorted({len(gram) for gram in chosen}, reverse=True)
    counts: Counter[Gram] = Counter()
    for document in documents:
        ids, position = document.tolist(), 0
        while position < len(ids):
            step = 1
            if ids[position] in starts:
                for size in sizes:
                    gram = tuple(ids[position : position + size])
                    if gram in wanted:
                        counts[gram] += 1
                        step = len(gram)
                        break
            position += step
    return counts


def lookahead_after(text: str, base_pattern: str) -> str | None:
    """A look-ahead that matches if the last pre-token of `text` ends with it, None if no look-ahead can tell.

    GPT-2's pattern and Llama 3's are supported: letters, digits and symbols extend over following characters of the
    same kind; whitespace extends to the last one before a word (`\\s+(?!\\S)`), and a line break may be separate.
    """
    last, has_breaks = text[-1], LINE_BREAKS in base_pattern
    if regex.fullmatch(r"\p{L}", last):
        return r"(?![\p{L}\p{M}])"
    if regex.fullmatch(r"\p{N}", last):
        return r"(?!\p{N})"
    if not regex.fullmatch(r"\s", last):  # marks belong to the symbols
        # Llama 3: line breaks belong to the symbols before them, and one symbol to the word after it.
        # Both: an apostrophe belongs to the suffix after it ('s)
        if has_breaks:
            return r"(?![^\s\p{N}]|[\r\n])"
        return r"(?![^\s\p{L}\p{N}]|[A-Za-z])" if last == "'" else r"(?![^\s\p{L}\p{N}])"
    if r"\s+(?!\S)" not in base_pattern:
        return None
    if has_breaks:
        return r"(?!\s*[\r\n])" if last in "\r\n" else r"(?!\S|[\r\n]|\s(?!\S))"
    return r"(?!\S|\s(?!\S))" if last == " " else r"(?!\s(?!\S))"


def phrase_pattern(phrases: Iterable[str], base_pattern: str) -> str:
    """The base pattern preceded by a trie of the phrases, the longest first, each with its look-ahead."""
    ends = {phrase: lookahead_after(phrase, base_pattern) for phrase in phrases}
    trie = {phrase: end for phrase, end in ends.items() if end is not None}
    return f"{trie_pattern(trie)}|{base_pattern}" if trie else base_pattern


def pattern_with(base: Tokenizer, new: Iterable[str]) -> str | None:
    """The base's pattern preceded by the new tokens that cross its pre-tokens, None if none does."""
    pretokenization = read_pretokenization(base)
    split = pretokenization.splitter(base)
    texts = (whole_text(string) for string in new)
    phrases = [text for text in texts if text is not None and len(split(text)) > 1]
    return phrase_pattern(phrases, pretokenization.pattern) if phrases and pretokenization.pattern else None
