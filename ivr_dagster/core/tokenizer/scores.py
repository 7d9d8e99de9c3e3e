"""Unigram scores under which the best-scoring segmentation is the one that BPE's merges find.

What belongs here: scores from merge ranks, and their repair. Nothing is trained and no text is read; how near they come
on text is `agreement.py`'s to measure.

BPE applies merges in rank order, Unigram maximises a sum. Let every merge have a gain and every token the sum of its
merges' gains; were each gain larger than all later ones together, the best sum would be BPE's choice on every string,
but for runs such as `(((`, whose orders are worth the same. Fifty thousand such steps do not fit into a float64. Gains
that fall with a power of the rank settle all but some hundred of the conflicts inside GPT-2's own tokens, and those
are settled one by one (`lift_gains`): the earliest merge of the segmentation that BPE prefers gets what it lacks.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer, models

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
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
    scores[[i for i, string in enumerate(bpe.strings) if string in CHARACTER_TO_BYTE]] = 0.0
    for made in sorted(bpe.merge_of, key=lambda made: len(bpe.strings[made])):  # halves first, whatever their ranks
        _, left, right = bpe.merge_of[made]
        if min(scores[left], scores[right]) > UNREACHABLE:
            scores[made] = storable(float(scores[left] + scores[right] + gains[made]))
    return scores


def lift_gains(bpe: ByteLevelBPE, gains: Mapping[int, float]) -> dict[int, float]:
    """Gains under which no token's string has a better segmentation than the token itself, where gains can say so.

    Where several late merges outweigh the early one that BPE prefers, the early one's gain is lifted above their sum.
    Every such constraint bounds a gain from below by gains of later merges only, so that one sweep from the last merge
    to the first satisfies all that are known; then the vocabulary is looked through again for new ones. Lifting a
    merge lifts every token that it is part of, which keeps what BPE joins early ahead of what it joins late.

    Of what the vocabulary's own strings teach, much holds elsewhere: on German that nobody looked at, it halves the
    pre-tokens that differ.
    """
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
    while True:
        scores = scores_from_gains(bpe, lifted)
        reachable = [made for made in bpe.merge_of if made not in bpe.added_ids and scores[made] > UNREACHABLE]
        model = models.Unigram([(s, float(x)) for s, x in zip(bpe.strings, scores, strict=True)])
        known = len(constraints)
        for token in reachable:
            found = model.tokenize(bpe.strings[token])
            if len(found) == 1:
                continue
            difference = merges_in(token).copy()
            for part in found:
                difference.subtract(merges_in(part.id))
            terms = {made: count for made, count in difference.items() if count}
            leader = min(terms, key=lambda made: bpe.merge_of[made][0], default=None)
            # where both have the same merges, or the rival the earliest, a run is at work: no gains can say it
            if leader is not None and terms[leader] > 0:
                constraints.setdefault(tuple(sorted(terms.items())), leader)
        if len(constraints) == known:
            return lifted
        for terms_, leader in sorted(constraints.items(), key=lambda item: -bpe.merge_of[item[1]][0]):
            others = -sum(count * lifted[made] for made, count in terms_ if made != leader)
            lifted[leader] = max(lifted[leader], others / dict(terms_)[leader] * (1.0 + LIFT_MARGIN))


def scores_from_merges(base: Tokenizer, bpe: ByteLevelBPE) -> tuple[np.ndarray, tuple[int, ...]]:
    """Scores of the base's own tokens, float64 [V], and the ids that only a score of their own could settle.

    Gains by rank, lifted, then repaired: each token is the one best segmentation of its string, but for those that
    the base never yields; they get `UNREACHABLE`.
    """
    return _scores_from_merges(bpe, tokens_never_yielded(base, bpe))


@lru_cache(maxsize=4)
def _scores_from_merges(bpe: ByteLevelBPE, never: frozenset[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    scores = scores_from_gains(bpe, lift_gains(bpe, gains_from_ranks(bpe)))
    scores[list(never)] = UNREACHABLE
    by_rank = [made for made in bpe.merge_of if made not in bpe.added_ids and scores[made] > UNREACHABLE]
    repaired, raised = repair_scores(bpe.strings, scores, by_rank)
    repaired.setflags(write=False)  # the cache hands it out again
    return repaired, tuple(raised)


def tokens_never_yielded(base: Tokenizer, bpe: ByteLevelBPE) -> frozenset[int]:
    """Ids of model tokens whose own string the base cuts otherwise: no text is ever encoded as them."""
    return frozenset(
        token_id
        for token_id, string in enumerate(bpe.strings)
        if token_id not in bpe.added_ids and [token.id for token in base.model.tokenize(string)] != [token_id]
    )


def storable(score: float) -> float:
    """The least score not below `score` that comes back from a `tokenizer.json` as it was written.

    `tokenizers` reads numbers by serde_json's fast way, digits as one number and a power of ten, each rounded: about
    every eighth score comes back one unit in the last place off, which is enough to turn a tie.
    """
    while _read_back(score) != score:
        score = math.nextafter(score, math.inf)
    return score


def _read_back(score: float) -> float:
    sign, digits, exponent = Decimal(repr(score)).as_tuple()
    number = float("".join(map(str, digits)))
    power = float(f"1e{abs(int(exponent))}")
    return (-number if sign else number) / power if int(exponent) < 0 else (-number if sign else number) * power


def best_split(string: str, score_of: Mapping[str, float], longest: int) -> tuple[float, int]:
    """Score and number of tokens of the best segmentation of `string` into two or more, (-inf, 0) where there is none.

    Sums run left to right, as in `tokenizers`, so that both round alike.
    """
    best = [0.0] + [-math.inf] * len(string)
    tokens = [0] * (len(string) + 1)
    size = len(string)
    for end in range(1, size + 1):
        for start in range(max(0, end - longest), end):
            if end - start == size:
                continue
            piece = score_of.get(string[start:end])
            if piece is not None and best[start] + piece > best[end]:
                best[end] = best[start] + piece
                tokens[end] = tokens[start] + 1
    return best[size], tokens[size]


def repair_scores(strings: Sequence[str], scores: np.ndarray, order: Iterable[int]) -> tuple[np.ndarray, list[int]]:
    """Raise every token that another segmentation of its own string reaches or beats, until none is left.

    Afterwards each token in `order` is the one best segmentation of itself.

    Args:
        strings: token of every id, V entries.
        scores: float64 [V]; not changed.
        order: ids to repair, shorter before longer or by merge rank, so that most is settled in one round.

    Returns:
        The repaired scores, float64 [V], and the ids that were raised.
    """
    repaired = scores.copy()
    score_of = {string: float(score) for string, score in zip(strings, scores, strict=True) if score > UNREACHABLE}
    order = [token_id for token_id in order if len(strings[token_id]) > 1]
    longest = max((len(string) for string in score_of), default=0)
    raised: set[int] = set()
    while True:
        changed = False
        for token_id in order:
            string = strings[token_id]
            rival, _ = best_split(string, score_of, longest)
            if rival >= score_of[string]:
                # a few units in the last place: a prefix in front of it rounds the sum once more
                score_of[string] = storable(rival + 8 * math.ulp(max(abs(rival), 1.0)))
                repaired[token_id] = score_of[string]
                raised.add(token_id)
                changed = True
        if not changed:
            return repaired, sorted(raised)


def scores_with_new(base: Tokenizer, bpe: ByteLevelBPE, strings: Sequence[str], *, repair: bool = True) -> np.ndarray:
    """Scores of a vocabulary in which some base tokens have given way to new strings, float64 [len(strings)].

    Kept tokens start from the base's scores; each new one, the shorter first, scores above its best other
    segmentation, the more the more tokens that has; then every token is made the best segmentation of itself, unless
    `repair` is off: for a look at how much is saved, the few that are not do not matter.
    """
    base_scores, _ = scores_from_merges(base, bpe)
    scores = np.full(len(strings), UNREACHABLE)
    for position, string in enumerate(strings):
        if string in bpe.ids:
            scores[position] = base_scores[bpe.ids[string]]
        elif string in CHARACTER_TO_BYTE:
            scores[position] = 0.0  # a byte that the base has no token for
    score_of = {s: float(x) for s, x in zip(strings, scores, strict=True) if x > UNREACHABLE}
    longest = max(map(len, strings))
    order = sorted(range(len(strings)), key=lambda i: (len(strings[i]), i))
    for position in order:
        string = strings[position]
        if string not in bpe.ids and string not in CHARACTER_TO_BYTE:
            rival, tokens = best_split(string, score_of, longest)
            if not tokens:  # it holds a byte without a token: nothing else can stand for it
                rival, tokens = 0.0, 2
            score_of[string] = storable(rival + NEW_TOKEN_GAIN * (tokens - 1))
            scores[position] = score_of[string]
    if not repair:
        return scores
    return repair_scores(strings, scores, [i for i in order if scores[i] > UNREACHABLE])[0]
