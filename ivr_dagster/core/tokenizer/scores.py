"""Unigram scores under which the best-scoring segmentation is the one that BPE's merges find.

What belongs here: scores from merge ranks, and their repair. Nothing is trained and no text is read; how near they come
on text is `agreement.py`'s to measure.

BPE applies merges in rank order, Unigram maximises a sum. Let every merge have a gain and every token the sum of its
merges' gains; were each gain larger than all later ones together, the best sum would be BPE's choice on every string,
but for runs such as `(((`, whose orders are worth the same. Fifty thousand such steps do not fit into a float64. Gains
that fall with a power of the rank settle all but some hundred of the conflicts inside GPT-2's own tokens, and those
are settled one by one (`lift_gains`): the earliest merge of the segmentation that BPE prefers gets what it lacks.
"""

import heapq
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, repeat

import numpy as np
import polars as pl
from tokenizers import Tokenizer, models

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.lattice import Lattice, Vocabulary
from ivr_dagster.core.tokenizer.segments import encode_each, places_of_any
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE

# gain(rank) = (1 + rank/100)^-power falls to this at the last rank: sums of a few units keep eight of float64's
# 53 bits below it for rounding
LEAST_GAIN = 2.0**-45
# on text that nobody tuned for, 100 and 200 with any power near that are alike, 16 and 1,000 are worse
RANK_SCALE = 100.0
# how much more than enough a lifted gain gets
LIFT_MARGIN = 0.01
# Far below any sum of scores, so that nothing is ever segmented into it
UNREACHABLE = -1e6
# What a new token scores above its best segmentation for each token it saves, so that of new tokens that overlap those
# win that save more. Much smaller would drown in rounding, much larger would tear apart what BPE joins early
NEW_TOKEN_GAIN = 1e-6
_POWERS = [float(f"1e{exponent}") for exponent in range(350)]  # the last are infinite


def gains_from_ranks(bpe: ByteLevelBPE) -> dict[int, float]:
    """What each merge adds to the score of the token it makes, by that token's id, before any lift."""
    last = max(len(bpe.merges), 2)
    power = math.log(LEAST_GAIN) / math.log1p(last / RANK_SCALE)
    return {made: (1.0 + rank / RANK_SCALE) ** power for made, (rank, _, _) in bpe.merge_of.items()}


def scores_from_gains(bpe: ByteLevelBPE, gains: Mapping[int, float]) -> np.ndarray:
    """s(byte) = 0, s(t) = s(left) + s(right) + gain(t); float64 [V].

    Tokens that no merge makes, added ones among them, get `UNREACHABLE`: BPE never yields them either, nor what would
    have to be made of them.
    """
    scores = np.full(bpe.size, UNREACHABLE)
    of_bytes = {i for i, string in enumerate(bpe.strings) if string in CHARACTER_TO_BYTE}
    scores[list(of_bytes)] = 0.0
    return _scored_anew(bpe, gains, scores, of_bytes)


def _scored_anew(bpe: ByteLevelBPE, gains: Mapping[int, float], before: np.ndarray, changed: set[int]) -> np.ndarray:
    """Scores `before`, float64 [V], with those of all that is made of `changed`, and of these."""
    scores: list[float] = before.tolist()
    followed = set(changed)
    for made, left, right in bpe.halves_first:
        if made in followed or left in followed or right in followed:
            followed.add(made)
            if scores[left] > UNREACHABLE and scores[right] > UNREACHABLE:
                scores[made] = storable(scores[left] + scores[right] + gains[made])
    return np.array(scores)


def lift_gains(bpe: ByteLevelBPE, gains: Mapping[int, float]) -> dict[int, float]:
    """Gains under which no token's string has a better segmentation than the token itself, where gains can say so.

    Where several late merges outweigh the early one that BPE prefers, the early one's gain is lifted above their sum.
    Every such constraint bounds a gain from below by gains of later merges only, so that one sweep from the last merge
    to the first satisfies all that are known; then the vocabulary is looked through again for new ones. Lifting a
    merge lifts every token that it is part of, which keeps what BPE joins early ahead of what it joins late.

    Of what the vocabulary's own strings teach, much holds elsewhere: on German that nobody looked at, it halves the
    pre-tokens that differ.
    """
    return _lifted(bpe, gains)[0]


def _lifted(bpe: ByteLevelBPE, gains: Mapping[int, float]) -> tuple[dict[int, float], np.ndarray]:
    """The gains of :func:`lift_gains` and the scores that they make, float64 [V]."""
    lifted = dict(gains)
    trees: dict[int, Counter[int]] = {}

    def merges_in(token: int) -> Counter[int]:
        if token not in trees:
            trees[token] = Counter()
            if token in bpe.merge_of:
                _, left, right = bpe.merge_of[token]
                trees[token] = merges_in(left) + merges_in(right) + Counter((token,))
        return trees[token]

    constraints: dict[tuple[tuple[int, int], ...], int] = {}
    scores = scores_from_gains(bpe, lifted)
    reachable = [i for i in bpe.merge_of if i not in bpe.added_ids and scores[i] > UNREACHABLE]
    lattice = Lattice(vocabulary_of(bpe), [bpe.strings[token] for token in reachable])
    while True:
        segments = lattice.best(scores).segments
        known = len(constraints)
        for n in np.flatnonzero(segments.lengths > 1).tolist():
            token = reachable[n]
            difference = merges_in(token).copy()
            for part in segments[n]:
                difference.subtract(merges_in(part))
            terms = {made: count for made, count in difference.items() if count}
            leader = min(terms, key=lambda made: bpe.merge_of[made][0], default=None)
            # where both have the same merges, or the rival the earliest, a run is at work: no gains can say it
            if leader is not None and terms[leader] > 0:
                constraints.setdefault(tuple(sorted(terms.items())), leader)
        if len(constraints) == known:
            return lifted, scores
        before = dict(lifted)
        for terms_, leader in sorted(constraints.items(), key=lambda item: -bpe.merge_of[item[1]][0]):
            others = -sum(count * lifted[made] for made, count in terms_ if made != leader)
            lifted[leader] = max(lifted[leader], others / dict(terms_)[leader] * (1.0 + LIFT_MARGIN))
        scores = _scored_anew(bpe, lifted, scores, {made for made in lifted if lifted[made] > before[made]})


@lru_cache(maxsize=4)
def vocabulary_of(bpe: ByteLevelBPE) -> Vocabulary:
    """The base's tokens, to be looked up."""
    return Vocabulary(bpe.strings)


@lru_cache(maxsize=4)
def scores_from_merges(bpe: ByteLevelBPE) -> tuple[np.ndarray, tuple[int, ...]]:
    """Scores of the base's own tokens, float64 [V], and the ids that only a score of their own could settle.

    Gains by rank, lifted, then repaired: each token is the one best segmentation of its string, but for those that
    the base never yields; they get `UNREACHABLE`.
    """
    _, scores = _lifted(bpe, gains_from_ranks(bpe))
    scores[list(tokens_never_yielded(bpe))] = UNREACHABLE
    by_rank = [made for made in bpe.merge_of if made not in bpe.added_ids and scores[made] > UNREACHABLE]
    repaired, raised = repair_scores(bpe.strings, scores, by_rank)
    repaired.setflags(write=False)  # the cache hands it out again
    return repaired, tuple(raised)


@lru_cache(maxsize=4)
def tokens_never_yielded(bpe: ByteLevelBPE) -> frozenset[int]:
    """Ids of model tokens whose own string the base cuts otherwise: no text is ever encoded as them."""
    merges = [(bpe.strings[left], bpe.strings[right]) for left, right, _ in bpe.merges]
    model = models.BPE(dict(bpe.ids), merges, ignore_merges=bpe.ignores_merges)
    own = np.array([token_id for token_id in range(bpe.size) if token_id not in bpe.added_ids], dtype=np.int64)
    segments = encode_each(Tokenizer(model), [bpe.strings[token_id] for token_id in own])
    itself = segments.lengths == 1
    itself[itself] = segments.ids[segments.starts[:-1][itself]] == own[itself]
    return frozenset(own[~itself].tolist())


def storable(score: float) -> float:
    """The least score not below `score` that comes back from a `tokenizer.json` as it was written.

    `tokenizers` reads numbers by serde_json's fast way, digits as one number and a power of ten, each rounded: about
    every eighth score comes back one unit in the last place off, which is enough to turn a tie.
    """
    while _read_back(score) != score:
        score = math.nextafter(score, math.inf)
    return score


def _read_back(score: float) -> float:
    mantissa, _, exponent = repr(score).partition("e")
    whole, _, fraction = mantissa.partition(".")
    number, power = float(whole + fraction), int(exponent or 0) - len(fraction)
    return number / _POWERS[-power] if power < 0 else number * _POWERS[power]


def best_split(string: str, score_of: Mapping[str, float], longest: int) -> tuple[float, int]:
    """Score and number of tokens of the best segmentation of `string` into two or more, (-inf, 0) where there is none.

    Sums run left to right, as in `tokenizers`, so that both round alike.
    """
    best, tokens, size = [0.0], [0], len(string)
    for end in range(1, size + 1):
        first = max(0, end - longest) if end < size else max(1, end - longest)
        score, parts = _best_end(string, first, end, best, tokens, score_of)
        best.append(score)
        tokens.append(parts)
    return best[size], tokens[size]


def _in_use(scores: np.ndarray) -> np.ndarray:
    """The scores of tokens that something is segmented into, -inf for all others."""
    return np.where(scores > UNREACHABLE, scores, -np.inf)


def _best_end(
    string: str, first: int, end: int, best: Sequence[float], tokens: Sequence[int], score_of: Mapping[str, float]
) -> tuple[float, int]:
    """Score and tokens of the best segmentation of `string[:end]` whose last token starts at `first` or later.

    `best` and `tokens` are those of the shorter beginnings.
    """
    score, parts = -math.inf, 0
    pieces = [string[start:end] for start in range(first, end)]
    for start, piece in enumerate(map(score_of.get, pieces), start=first):
        if piece is not None and best[start] + piece > score:
            score, parts = best[start] + piece, tokens[start] + 1
    return score, parts


def repair_scores(
    strings: Sequence[str], scores: np.ndarray, order: Iterable[int], *, suspects: Iterable[int] | None = None
) -> tuple[np.ndarray, list[int]]:
    """Raise every token that another segmentation of its own string reaches or beats, until none is left.

    Afterwards each token in `order` is the one best segmentation of itself. Tokens are looked at in rounds; after a
    first look only those that hold a raised one.

    Args:
        strings: token of every id, V entries.
        scores: float64 [V]; not changed.
        order: ids to repair, shorter before longer or by merge rank, so that most is settled in one round.
        suspects: those of `order` to look at first, None for all; of the others it is known that nothing reaches them.

    Returns:
        The repaired scores, float64 [V], and the ids that were raised.
    """
    repaired = scores.copy()
    score_of = {s: score for s, score in zip(strings, scores.tolist(), strict=True) if score > UNREACHABLE}
    order = [token_id for token_id in order if len(strings[token_id]) > 1]
    longest = max(map(len, score_of), default=0)
    looked_at = np.array(order if suspects is None else sorted(suspects), dtype=np.int64)
    lattice = Lattice(Vocabulary(strings), [strings[token_id] for token_id in looked_at])
    rivals = lattice.best(_in_use(repaired), split=True).totals
    suspected = set(looked_at[rivals >= repaired[looked_at]].tolist())
    text = "\n".join(strings[token_id] for token_id in order)  # a line each; no string holds a line end
    lines = [0, *accumulate(len(strings[token_id]) + 1 for token_id in order)]
    raised: set[int] = set()
    round_ = [place for place, token_id in enumerate(order) if token_id in suspected]
    while round_:
        due, later = set(round_), set[int]()
        while round_:  # a heap of places in `order`
            place = heapq.heappop(round_)
            token_id = order[place]
            string = strings[token_id]
            rival, _ = best_split(string, score_of, longest)
            if rival < score_of[string]:
                continue
            # a few units in the last place: a prefix in front of it rounds the sum once more
            score_of[string] = storable(rival + 8 * math.ulp(max(abs(rival), 1.0)))
            repaired[token_id] = score_of[string]
            raised.add(token_id)
            at = text.find(string)
            while at >= 0:
                holder = bisect_right(lines, at) - 1
                if holder < place:
                    later.add(holder)
                elif holder > place and holder not in due:
                    due.add(holder)
                    heapq.heappush(round_, holder)
                at = text.find(string, lines[holder + 1])
        round_ = sorted(later)
    return repaired, sorted(raised)


def scores_with_new(bpe: ByteLevelBPE, strings: Sequence[str], *, repair: bool = True) -> np.ndarray:
    """Scores of a vocabulary in which some base tokens have given way to new strings, float64 [len(strings)].

    Kept tokens start from the base's scores; each new one, the shorter first, scores above its best other
    segmentation, the more the more tokens that has; then every token is made the best segmentation of itself, unless
    `repair` is off: for a look at how much is saved, the few that are not do not matter.
    """
    return _scores_with_new(bpe, tuple(strings), repair)


def _score_of_new(rivals: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    # one that holds a byte without a token has no rival: nothing else can stand for it
    reached, saved = np.where(tokens > 0, rivals, 0.0), np.where(tokens > 0, tokens, 2) - 1
    return np.array(list(map(storable, (reached + NEW_TOKEN_GAIN * saved).tolist())))


@lru_cache(maxsize=4)  # one vocabulary is looked at with and without repair, and made once more from its rules
def _scores_with_new(bpe: ByteLevelBPE, strings: tuple[str, ...], repair: bool) -> np.ndarray:
    places = np.fromiter(map(bpe.ids.get, strings, repeat(-1)), dtype=np.int64, count=len(strings))
    added: list[int] = np.flatnonzero(places < 0).tolist()
    if repair:
        scores = _scores_with_new(bpe, strings, False)
        if added:
            # the base's tokens are repaired, new ones score above all that is shorter: only what holds a new one may
            # be beaten
            holding = places_of_any([strings[n] for n in added], pl.Series(strings)).tolist()
            order = sorted((n for n in holding if scores[n] > UNREACHABLE), key=lambda n: len(strings[n]))
            scores = repair_scores(strings, scores, order, suspects=set(holding).difference(added))[0]
    else:
        scores = np.where(places < 0, UNREACHABLE, scores_from_merges(bpe)[0][places])
        scores[[n for n in added if strings[n] in CHARACTER_TO_BYTE]] = 0.0  # that the base has no token for
        longer = [n for n in added if scores[n] == UNREACHABLE]
        lattice = Lattice(Vocabulary(strings), [strings[n] for n in longer])
        scores[longer] = lattice.scored(_in_use(scores), np.array(longer, np.int64), _score_of_new)[longer]
    scores.setflags(write=False)  # the cache hands it out again
    return scores
