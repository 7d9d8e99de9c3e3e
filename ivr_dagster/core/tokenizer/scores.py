"""Unigram scores whose best segmentation is the one that BPE's merges find.

BPE applies merges in rank order, Unigram maximizes a sum. Give every merge a gain and every token the sum of its
merges' gains. If each gain exceeded the sum of all later ones, the best sum would be BPE's choice on every string
except runs such as `(((`. Fifty thousand such steps do not fit into a float64. Gains that fall with a power of the
rank settle all but a few hundred conflicts inside GPT-2's tokens; `lift_gains` settles those: the earliest merge of
the segmentation that BPE prefers is raised. No text is read; `agreement.py` measures the result on text.
"""

import heapq
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.lattice import Lattice, Vocabulary
from ivr_dagster.core.tokenizer.segments import encode_each
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE

# gain(rank) = (1 + rank/100)^-power equals this at the last rank: sums of a few units leave eight of float64's 53 bits
# for rounding
LEAST_GAIN = 2.0**-45
# on text that was not tuned for, 100 and 200 perform alike, 16 and 1,000 worse
RANK_SCALE = 100.0
# margin by which a lifted gain exceeds what it needs
LIFT_MARGIN = 0.01
# far below any sum of scores: nothing is ever segmented into such a token
UNREACHABLE = -1e6
# what a token without a merge, which BPE only produces as a whole pre-token, scores above its best split
WHOLE_GAIN = 1e-6
_POWERS = [float(f"1e{exponent}") for exponent in range(350)]  # the last ones are infinite


def gains_from_ranks(bpe: ByteLevelBPE) -> dict[int, float]:
    """What each merge adds to the score of its token, by token id, before lifting."""
    last = max(len(bpe.merges), 2)
    power = math.log(LEAST_GAIN) / math.log1p(last / RANK_SCALE)
    return {token_id: (1.0 + rank / RANK_SCALE) ** power for token_id, (rank, _, _) in bpe.merge_of.items()}


def scores_from_gains(bpe: ByteLevelBPE, gains: Mapping[int, float]) -> np.ndarray:
    """s(byte) = 0, s(t) = s(left) + s(right) + gain(t); float64 [V].

    Tokens without a merge, including added tokens, and tokens made of them get `UNREACHABLE`: BPE never produces them.
    """
    scores = np.full(bpe.size, UNREACHABLE)
    byte_ids = {i for i, string in enumerate(bpe.strings) if string in CHARACTER_TO_BYTE}
    scores[list(byte_ids)] = 0.0
    return _update_scores(bpe, gains, scores, byte_ids)


def _update_scores(
    bpe: ByteLevelBPE, gains: Mapping[int, float], previous: np.ndarray, changed: set[int]
) -> np.ndarray:
    """Scores with those of all tokens made of the `changed` ids recomputed, float64 [V]."""
    scores: list[float] = previous.tolist()
    affected = set(changed)
    for token_id, left, right in bpe.merges_by_length:
        if token_id in affected or left in affected or right in affected:
            affected.add(token_id)
            if scores[left] > UNREACHABLE and scores[right] > UNREACHABLE:
                scores[token_id] = storable(scores[left] + scores[right] + gains[token_id])
    return np.array(scores)


def lift_gains(bpe: ByteLevelBPE, gains: Mapping[int, float]) -> tuple[dict[int, float], np.ndarray]:
    """Gains with which no token's string has a better segmentation than the token itself, where gains can express it.

    If several late merges outweigh the early one that BPE prefers, the early gain is lifted above their sum. Each such
    constraint bounds a gain from below by gains of later merges only, so one sweep from the last merge to the first
    satisfies all known constraints. Then the vocabulary is searched for new ones. Lifting a merge lifts every token
    that contains it, so BPE's order is preserved elsewhere. On unseen German text this halves the number of differing
    pre-tokens.

    Returns:
        The gains by token id, and their scores, float64 [V].
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
    scores = scores_from_gains(bpe, lifted)
    reachable = [i for i in bpe.merge_of if i not in bpe.added_ids and scores[i] > UNREACHABLE]
    lattice = Lattice(_vocabulary_of(bpe), [bpe.strings[token] for token in reachable])
    while True:
        segments = lattice.best(scores).segments
        known = len(constraints)
        for n in np.flatnonzero(segments.lengths > 1).tolist():
            token = reachable[n]
            difference = merges_in(token).copy()
            for part in segments[n]:
                difference.subtract(merges_in(part))
            terms = {merge: count for merge, count in difference.items() if count}
            earliest = min(terms, key=lambda merge: bpe.merge_of[merge][0], default=None)
            # equal merges, or a rival with the earliest one: a run, which gains cannot express
            if earliest is not None and terms[earliest] > 0:
                constraints.setdefault(tuple(sorted(terms.items())), earliest)
        if len(constraints) == known:
            return lifted, scores
        before = dict(lifted)
        for terms_, earliest in sorted(constraints.items(), key=lambda item: -bpe.merge_of[item[1]][0]):
            others = -sum(count * lifted[merge] for merge, count in terms_ if merge != earliest)
            lifted[earliest] = max(lifted[earliest], others / dict(terms_)[earliest] * (1.0 + LIFT_MARGIN))
        scores = _update_scores(bpe, lifted, scores, {merge for merge in lifted if lifted[merge] > before[merge]})


@lru_cache(maxsize=4)
def _vocabulary_of(bpe: ByteLevelBPE) -> Vocabulary:
    return Vocabulary(bpe.strings)


@lru_cache(maxsize=4)
def scores_from_merges(bpe: ByteLevelBPE) -> tuple[np.ndarray, tuple[int, ...]]:
    """Scores of the base's tokens, float64 [V], and the ids that gains could not settle and were raised individually.

    Each token is the only best segmentation of its string, except for tokens that the base never produces; those get
    `UNREACHABLE`.
    """
    _, scores = lift_gains(bpe, gains_from_ranks(bpe))
    unreachable = unreachable_ids(bpe)
    scores[list(unreachable)] = UNREACHABLE
    by_rank = [
        token_id for token_id in bpe.merge_of if token_id not in bpe.added_ids and scores[token_id] > UNREACHABLE
    ]
    # shorter ones first, as splits may contain them
    whole = set(np.flatnonzero(scores == UNREACHABLE).tolist()) - bpe.added_ids - unreachable
    score_of = {s: score for s, score in zip(bpe.strings, scores.tolist(), strict=True) if score > UNREACHABLE}
    for token_id in sorted(whole, key=lambda token_id: (len(bpe.strings[token_id]), token_id)):
        string = bpe.strings[token_id]
        rival, parts = best_split(string, score_of, len(string))
        if parts:  # none with a byte that has no token, which is dropped before the model
            scores[token_id] = score_of[string] = storable(rival + WHOLE_GAIN)
            by_rank.append(token_id)
    repaired, raised = repair_scores(bpe.strings, scores, by_rank)
    repaired.setflags(write=False)  # cached
    return repaired, tuple(raised)


@lru_cache(maxsize=4)
def unreachable_ids(bpe: ByteLevelBPE) -> frozenset[int]:
    """Ids of model tokens whose own string the base segments differently: no text is ever encoded as them."""
    own = np.array([token_id for token_id in range(bpe.size) if token_id not in bpe.added_ids], dtype=np.int64)
    segments = encode_each(Tokenizer(bpe.model()), [bpe.strings[token_id] for token_id in own])
    is_itself = segments.lengths == 1
    is_itself[is_itself] = segments.ids[segments.starts[:-1][is_itself]] == own[is_itself]
    return frozenset(own[~is_itself].tolist())


def storable(score: float) -> float:
    """The least value not below `score` that survives being written to and read from a `tokenizer.json`.

    `tokenizers` parses numbers with serde_json's fast path, digits as one number times a power of ten, each rounded.
    About every eighth score changes in the last place, which is enough to break a tie.
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
    """Score and number of tokens of the best segmentation of `string` into two or more, (-inf, 0) if there is none.

    Sums run left to right as in `tokenizers`, so that both round alike.
    """
    best, tokens, size = [0.0], [0], len(string)
    for end in range(1, size + 1):
        first = max(0 if end < size else 1, end - longest)
        score, count = -math.inf, 0
        pieces = [string[start:end] for start in range(first, end)]
        for start, piece in enumerate(map(score_of.get, pieces), start=first):
            if piece is not None and best[start] + piece > score:
                score, count = best[start] + piece, tokens[start] + 1
        best.append(score)
        tokens.append(count)
    return best[size], tokens[size]


def _usable(scores: np.ndarray) -> np.ndarray:
    """The scores with -inf instead of `UNREACHABLE`."""
    return np.where(scores > UNREACHABLE, scores, -np.inf)


def repair_scores(
    strings: Sequence[str], scores: np.ndarray, order: Iterable[int], *, suspects: Iterable[int] | None = None
) -> tuple[np.ndarray, list[int]]:
    """Raise every token whose string has another segmentation that scores as high, until there is none left.

    Afterwards each token in `order` is the only best segmentation of itself. Tokens are checked in rounds; after the
    first round only those that contain a raised token.

    Args:
        strings: token of every id, V entries.
        scores: float64 [V]; not modified.
        order: ids to repair, shorter before longer or by merge rank, so that most is settled in one round.
        suspects: the ids of `order` to check first, None for all; the others are known to be correct.

    Returns:
        The repaired scores, float64 [V], and the raised ids.
    """
    repaired = scores.copy()
    score_of = {s: score for s, score in zip(strings, scores.tolist(), strict=True) if score > UNREACHABLE}
    order = [token_id for token_id in order if len(strings[token_id]) > 1]
    longest = max(map(len, score_of), default=0)
    checked = np.array(order if suspects is None else sorted(suspects), dtype=np.int64)
    lattice = Lattice(Vocabulary(strings), [strings[token_id] for token_id in checked])
    rivals = lattice.best(_usable(repaired), split=True).totals
    beaten = set(checked[rivals >= repaired[checked]].tolist())
    text = "\n".join(strings[token_id] for token_id in order)  # one line per token; no string contains a line end
    lines = [0, *accumulate(len(strings[token_id]) + 1 for token_id in order)]
    raised: set[int] = set()
    queue = [index for index, token_id in enumerate(order) if token_id in beaten]  # a heap of indices in `order`
    while queue:
        due, next_round = set(queue), set[int]()
        while queue:
            index = heapq.heappop(queue)
            token_id = order[index]
            string = strings[token_id]
            rival, _ = best_split(string, score_of, longest)
            if rival < score_of[string]:
                continue
            # a few units in the last place: a preceding token rounds the sum once more
            score_of[string] = storable(rival + 8 * math.ulp(max(abs(rival), 1.0)))
            repaired[token_id] = score_of[string]
            raised.add(token_id)
            at = text.find(string)
            while at >= 0:
                line = bisect_right(lines, at) - 1
                if line < index:
                    next_round.add(line)
                elif line > index and line not in due:
                    due.add(line)
                    heapq.heappush(queue, line)
                at = text.find(string, lines[line + 1])
        queue = sorted(next_round)
    return repaired, sorted(raised)
