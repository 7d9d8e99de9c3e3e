"""Candidates: strings that would save the most tokens if each had an id.

Within pre-tokens by continued BPE over pre-token counts: the most frequent neighbouring pair is joined, counts are
updated where it stood, and so on. A candidate's saving is what it saves where it stands once all have been joined, so
that savings add up. Across pre-tokens, phrases compete with them by their saving.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import regex
from tokenizers import Tokenizer

from ivr_dagster.core.errors import InputError
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.unigram import extended_tokenizer, run_cuts
from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.tokens.counts import PretokenCounts, encode_types
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.core.vocabulary.phrases import select_phrases


@dataclass(frozen=True, slots=True)
class Candidate:
    """A string that asks for an id.

    Attributes:
        string: the new token in the byte-level alphabet.
        constituents: ids of the base tokens it replaces, in order.
        saving: tokens it saves on the train split where it stands once all candidates are joined.
        frequency: how often it stands there.
    """

    string: str
    constituents: tuple[int, ...]
    saving: int
    frequency: int


@dataclass(frozen=True)
class Selection:
    """Candidates by falling saving.

    Attributes:
        candidates: what asks for an id.
        tokens_before, tokens_after: tokens of the counted pre-tokens, base and with all candidates; they differ by the
            sum of all savings.
    """

    candidates: list[Candidate]
    tokens_before: int
    tokens_after: int


def select_within(
    sequences: Sequence[Sequence[int]],
    counts: np.ndarray,
    strings: Sequence[str],
    *,
    budget: int,
    min_bytes: int = 2,
    min_frequency: int = 2,
    frozen: frozenset[int] = frozenset(),
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Up to `budget` candidates by continued BPE.

    A joined string that ends up saving less than `min_frequency`, since longer ones took its places, gives its id back
    and the budget is filled up with the next. Joining stops early where no pair occurs `min_frequency` times.

    Args:
        sequences: base ids of each pre-token type.
        counts: occurrences of each type, int64.
        strings: the base vocabulary by id; no candidate equals one of these.
        budget: how many candidates at most.
        min_bytes: shorter strings are joined on the way to longer ones but get no id.
        min_frequency: the least saving worth an id.
        frozen: ids that are never joined (bytes outside the alphabet, added tokens).
        progress: called with (candidates so far, budget).
    """
    names: list[str] = list(strings)
    known = set(names)
    constituents: dict[int, tuple[int, ...]] = {}
    originals = [list(ids) for ids in sequences if len(ids) > 1]
    words = originals.copy()
    weights = [int(count) for ids, count in zip(sequences, counts, strict=True) if len(ids) > 1]
    single = sum(int(c) * len(ids) for ids, c in zip(sequences, counts, strict=True) if len(ids) < 2)
    tokens_before = single + sum(w * len(word) for w, word in zip(weights, words, strict=True))

    pair_counts: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for n, word in enumerate(words):
        for pair, repeats in _pairs(word).items():
            pair_counts[pair] += repeats * weights[n]
            places[pair].add(n)
    # ties fall to the lower ids, so that the order never depends on hashing
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    made: dict[str, int] = {}
    frequency: Counter[int] = Counter()
    live = 0

    def worth_an_id(token: int) -> bool:
        saving = frequency[token] * (len(constituents[token]) - 1)
        return saving >= min_frequency and len(names[token]) >= min_bytes

    while heap and live < budget:
        negative, pair = heapq.heappop(heap)
        count = pair_counts.get(pair, 0)
        if count != -negative:
            if count > 0:
                heapq.heappush(heap, (-count, pair))
            continue
        if count < min_frequency:
            break
        left, right = pair
        string = names[left] + names[right]
        if string in known or left in frozen or right in frozen:
            del pair_counts[pair]  # the base has it and does not use it here
            continue
        new = made.get(string)
        if new is None:
            new = made[string] = len(names)
            names.append(string)
            constituents[new] = constituents.get(left, (left,)) + constituents.get(right, (right,))
        changed: Counter[tuple[int, int]] = Counter()
        touched = {left, right, new} & constituents.keys()
        live -= sum(map(worth_an_id, touched))
        for n in places.pop(pair):
            old, word = words[n], _join(words[n], left, right, new)
            if len(word) == len(old):
                continue
            words[n] = word
            joined = (len(old) - len(word)) * weights[n]
            frequency[new] += joined
            for token in (left, right):
                if token in constituents:
                    frequency[token] -= joined
            old_pairs, new_pairs = _pairs(old), _pairs(word)
            for other, repeats in old_pairs.items():
                changed[other] -= repeats * weights[n]
            for other, repeats in new_pairs.items():
                changed[other] += repeats * weights[n]
                if other not in old_pairs:
                    places[other].add(n)
        pair_counts.pop(pair, None)
        for other, difference in changed.items():
            if other == pair or not difference:
                continue
            pair_counts[other] += difference
            if difference > 0:
                heapq.heappush(heap, (-pair_counts[other], other))
        live += sum(map(worth_an_id, touched))
        if progress is not None and live % 100 == 0:
            progress(live, budget)

    saved = _savings(originals, words, weights, names)
    candidates = [Candidate(names[new], constituents[new], saved[new], frequency[new]) for new in constituents]
    chosen = sorted(
        (c for c in candidates if c.saving >= min_frequency and len(c.string) >= min_bytes), key=lambda c: -c.saving
    )[:budget]
    return Selection(chosen, tokens_before, tokens_before - sum(candidate.saving for candidate in chosen))


def _savings(originals: list[list[int]], words: list[list[int]], weights: list[int], names: list[str]) -> Counter[int]:
    """What each token of `words` saves over the base tokens of `originals` in its place."""
    saved: Counter[int] = Counter()
    for original, word, weight in zip(originals, words, weights, strict=True):
        parts = iter(original)
        for token in word:
            length, covered = len(names[token]), 0
            while covered < length:
                covered += len(names[next(parts)])
                saved[token] += weight
            saved[token] -= weight
    return saved


def _pairs(word: list[int]) -> Counter[tuple[int, int]]:
    """Neighbouring pairs of a word without overlap: `a a a` holds (a, a) once."""
    found: Counter[tuple[int, int]] = Counter()
    position = 0
    previous: tuple[int, int] | None = None
    while position < len(word) - 1:
        pair = (word[position], word[position + 1])
        if pair == previous and pair[0] == pair[1]:
            previous = None  # the middle of a run counts once
        else:
            found[pair] += 1
            previous = pair
        position += 1
    return found


def _join(word: list[int], left: int, right: int, new: int) -> list[int]:
    joined: list[int] = []
    position, last = 0, len(word) - 1
    while position <= last:
        if position < last and word[position] == left and word[position + 1] == right:
            joined.append(new)
            position += 2
        else:
            joined.append(word[position])
            position += 1
    return joined


def choose_candidates(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    counts: PretokenCounts,
    texts: Iterable[str],
    *,
    budget: int,
    min_bytes: int = 2,
    min_frequency: int = 2,
    across: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Up to `budget` candidates within pre-tokens and, where `across`, phrases of them, in one order by saving.

    Args:
        base: the base tokenizer.
        bpe: its vocabulary.
        counts: pre-token counts of the train split.
        texts: the train split; read for phrases only.
        budget, min_bytes, min_frequency, progress: as of :func:`select_within`.
        across: whether phrases take part.

    Raises:
        InputError: phrases are asked for and the base's pre-tokenizer is more than one pattern.
    """
    cuts = run_cuts(base, bpe.strings)
    pieces, weights = cut_pieces(counts, cuts)
    sequences = [[token.id for token in base.model.tokenize(piece)] for piece in pieces]
    within = select_within(
        sequences,
        weights,
        bpe.strings,
        budget=budget,
        min_bytes=min_bytes,
        min_frequency=min_frequency,
        progress=progress,
    )
    if not across:
        return within
    pretokenization = read_pretokenization(base)
    if pretokenization.pattern is None:
        raise InputError(
            "new tokens across pre-tokens need a pre-tokenizer that is one pattern, this tokenizer's is not",
            where="merge_scope",
            remedy="Set --merge-scope within.",
        )
    # lengths under the base are what a phrase can save at most; what words save by themselves is taken off below
    tokens = dict(zip(counts.types, map(len, encode_types(base, counts.types)), strict=True))
    interim = _interim_lengths(base, bpe, within, counts)
    cut = regex.compile(cuts) if cuts else None
    known = {candidate.string for candidate in within.candidates} | set(bpe.strings)

    def allowed(text: str) -> bool:
        string = string_of(text)
        return (
            string not in known
            and not (cut and cut.search(string))
            and not any(t in text for t in pretokenization.added_tokens)
        )

    phrases = select_phrases(
        texts,
        pretokenization.splitter(base),
        lambda piece: interim.get(piece, tokens.get(piece, 1)),
        budget=budget,
        min_saving=min_frequency,
        allowed=allowed,
    )
    joined = [
        Candidate(
            string_of(phrase.text),
            tuple(i for piece in phrase.pretokens for i in base.encode(piece, add_special_tokens=False).ids),
            phrase.saving,
            phrase.frequency,
        )
        for phrase in phrases
    ]
    best = sorted([*within.candidates, *joined], key=lambda candidate: (-candidate.saving, candidate.string))[:budget]
    saved = sum(candidate.saving for candidate in best)
    return Selection(best, within.tokens_before, within.tokens_before - saved)


def _interim_lengths(base: Tokenizer, bpe: ByteLevelBPE, within: Selection, counts: PretokenCounts) -> dict[str, int]:
    """Tokens of each pre-token type once the candidates within are there, found as the remapped tokenizer would."""
    tokenizer = extended_tokenizer(base, bpe, [candidate.string for candidate in within.candidates])
    return dict(zip(counts.types, map(len, encode_types(tokenizer, counts.types)), strict=True))


def cut_pieces(counts: PretokenCounts, cuts: str | None) -> tuple[list[str], np.ndarray]:
    """Byte-level strings inside which a new token may lie, with their counts (int64), by falling count.

    Pre-token types, cut where the distilled tokenizer cuts them once more: a candidate across such a cut could never
    be produced.
    """
    if cuts is None:
        return [string_of(piece) for piece in counts.types], counts.counts
    pattern = regex.compile(f"({cuts})")
    pieces: Counter[str] = Counter()
    for text, count in zip(counts.types, counts.counts.tolist(), strict=True):
        for piece in pattern.split(string_of(text)):
            if piece:
                pieces[piece] += count
    ordered = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    return ordered, np.array([pieces[piece] for piece in ordered], dtype=np.int64)
