"""Phrases: new tokens across pre-tokens (" of the"), found by counting and produced by the pre-tokenizer.

A token across pre-tokens exists only if the pre-tokenizer yields its text as one piece. It does when its pattern
tries the phrases first; a look-ahead makes sure that a phrase ends where its last pre-token ends.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import regex

LONGEST_PHRASE = 4  # pre-tokens; longer ones are rarely common to many documents
DOCUMENTS_NEEDED = 2  # a phrase of one document says nothing about the next
# what may not follow, by the kind of the last character: the pre-token would go on
_ENDS = {"letter": r"(?![\p{L}\p{M}])", "number": r"(?!\p{N})", "symbol": r"(?![^\s\p{L}\p{N}])"}


@dataclass(frozen=True, slots=True)
class Phrase:
    """Neighbouring pre-tokens as text, the tokens it saves on the train split and its occurrences, without overlap."""

    pretokens: tuple[str, ...]
    saving: int
    frequency: int

    @property
    def text(self) -> str:
        """The phrase as it stands in text."""
        return "".join(self.pretokens)


def select_phrases(
    texts: Iterable[str],
    split: Callable[[str], list[str]],
    length_of: Callable[[str], int],
    *,
    budget: int,
    min_saving: int,
    allowed: Callable[[str], bool],
) -> list[Phrase]:
    """Up to `budget` phrases of two to four pre-tokens by falling saving.

    All n-grams are counted in one pass. The best by their overlapping counts, three times the budget, are then put to
    the corpus together, leftmost and longest first, as the pre-tokenizer will; what each saves there decides.

    Args:
        texts: the train split.
        split: text to pre-tokens.
        length_of: tokens of a pre-token under the vocabulary so far.
        budget: how many at most.
        min_saving: tokens a phrase must save.
        allowed: whether a text may be a new token (no existing string, nothing the tokenizer cuts).
    """
    numbers: dict[str, int] = {}
    documents = [
        np.array([numbers.setdefault(piece, len(numbers)) for piece in split(text)], np.int64) for text in texts
    ]
    types = list(numbers)
    lengths = np.array([length_of(piece) for piece in types], dtype=np.int64)
    ranked: list[tuple[int, tuple[int, ...]]] = []
    for size in range(2, LONGEST_PHRASE + 1):
        ranked += _frequent(documents, lengths, size, min_saving)
    ranked.sort(key=lambda item: (-item[0], item[1]))
    chosen: list[tuple[int, ...]] = []
    for _, gram in ranked:
        if len(chosen) >= 3 * budget:
            break
        text = "".join(types[n] for n in gram)
        if end_kind(text) is not None and allowed(text):
            chosen.append(gram)
    counts = _count_without_overlap(documents, chosen)
    savings = {gram: count * (int(lengths[list(gram)].sum()) - 1) for gram, count in counts.items()}
    best = sorted((g for g in savings if savings[g] >= min_saving), key=lambda gram: (-savings[gram], gram))[:budget]
    return [Phrase(tuple(types[n] for n in gram), savings[gram], counts[gram]) for gram in best]


def _frequent(
    documents: list[np.ndarray], lengths: np.ndarray, size: int, min_saving: int
) -> list[tuple[int, tuple[int, ...]]]:
    """(saving by overlapping count, n-gram) of the n-grams that stand in enough documents and save enough."""
    grams, owners = [], []
    for number, document in enumerate(documents):
        if len(document) >= size:
            grams.append(np.lib.stride_tricks.sliding_window_view(document, size))
            owners.append(np.full(len(document) - size + 1, number))
    if not grams:
        return []
    rows, owner = np.concatenate(grams), np.concatenate(owners)
    # two columns at a time into one number, so that sorting works on integers and not on rows
    codes = rows[:, 0]
    for column in range(1, size):
        _, codes = np.unique(codes * (int(rows.max()) + 1) + rows[:, column], return_inverse=True)
    _, first, inverse, counts = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
    seen = np.unique(inverse * len(documents) + owner) // len(documents)
    in_documents = np.bincount(seen, minlength=len(counts))
    saving = counts * (lengths[rows[first]].sum(axis=1) - 1)
    keep = np.flatnonzero((in_documents >= DOCUMENTS_NEEDED) & (saving >= min_saving))
    return [(int(saving[n]), tuple(rows[first[n]].tolist())) for n in keep]


def _count_without_overlap(documents: list[np.ndarray], chosen: Sequence[tuple[int, ...]]) -> Counter[tuple[int, ...]]:
    wanted, starts = set(chosen), {gram[0] for gram in chosen}
    sizes = sorted({len(gram) for gram in chosen}, reverse=True)
    counts: Counter[tuple[int, ...]] = Counter()
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


def end_kind(text: str) -> str | None:
    """What kind of pre-token the text ends in, None where its end depends on more than the next character."""
    if regex.search(r"[\p{L}\p{M}]\Z", text):
        return "letter"
    if regex.search(r"\p{N}\Z", text):
        return "number"
    return None if text[-1].isspace() else "symbol"


def phrase_pattern(phrases: Iterable[str], base_pattern: str) -> str:
    """The base pattern with phrases before it, factored into a trie for each kind of end."""
    by_kind: defaultdict[str, list[str]] = defaultdict(list)
    for phrase in phrases:
        kind = end_kind(phrase)
        if kind is not None:
            by_kind[kind].append(phrase)
    # the longest must win whatever its kind, so one trie holds all, each end with its own look-ahead
    trie: dict[str, object] = {}
    for kind, members in by_kind.items():
        for phrase in members:
            node = trie
            for character in phrase:
                node = node.setdefault(character, {})  # type: ignore[assignment]
            node[""] = _ENDS[kind]
    return f"{_as_pattern(trie)}|{base_pattern}" if trie else base_pattern


def _as_pattern(node: dict[str, object]) -> str:
    """A trie as a pattern; chains of single children become literals, an end is its look-ahead."""
    branches = []
    for character, child in node.items():
        if character == "":
            continue
        literal = regex.escape(character, special_only=True, literal_spaces=True)
        while isinstance(child, dict) and len(child) == 1 and "" not in child:
            ((following, child),) = child.items()
            literal += regex.escape(following, special_only=True, literal_spaces=True)
        branches.append(literal + _as_pattern(child))  # type: ignore[arg-type]
    if "" in node:
        branches.append(str(node[""]))  # last: a longer phrase goes first
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
