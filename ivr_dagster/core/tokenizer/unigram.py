"""Unigram scores under which Viterbi finds the segmentation that BPE's merges find.

What belongs here: the closed form of the scores, their repair, and the assembly of a Unigram `tokenizers.Tokenizer`
around them. Nothing is trained; how near it comes is `agreement.py`'s to measure.

BPE applies merges in rank order, Unigram maximises a sum. Give every token the score of its two halves plus a gain
that falls steeply with the rank of their merge, and the earliest merge outweighs any number of later ones.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import product
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, text_of

# gain(rank) = (1 + rank/16)^-4: steeper loses late merges to float64's 53 bits, flatter lets sums of late merges
# outweigh an early one
RANK_SCALE = 16.0
RANK_POWER = -4.0
# Far below any sum of scores, so that nothing is ever segmented into it
UNREACHABLE = -1e6
SHORTEST_RUN = 4
WHITE_SPACE = "ĠĊ"
# a run of one character, with at most three others before it
RUN_TOKEN = re.compile(rf"(?P<head>.{{0,3}}?)(?P<run>(?P<character>.)(?P=character){{{SHORTEST_RUN - 1},}})", re.DOTALL)
# What a string that no merge makes scores above its best segmentation. On held-out text 1e-14 to 1 differ by less
# than 0.1 % of tokens; much smaller would drown in rounding, much larger would tear apart what BPE joins early
NEW_TOKEN_GAIN = 1e-6


def gain(rank: float) -> float:
    """What joining two tokens by the merge of this rank adds to the score."""
    return float((1.0 + rank / RANK_SCALE) ** RANK_POWER)


def scores_from_merges(bpe: ByteLevelBPE) -> np.ndarray:
    """The closed form: s(byte) = 0, s(t) = s(left) + s(right) + gain(rank); float64 [V].

    Tokens that no merge makes, added ones among them, get `UNREACHABLE`: BPE never yields them either, nor what would
    have to be made of them.
    """
    scores = np.full(bpe.size, UNREACHABLE)
    scores[[i for i, string in enumerate(bpe.strings) if string in CHARACTER_TO_BYTE]] = 0.0
    for made in sorted(bpe.merge_of, key=lambda made: len(bpe.strings[made])):  # halves first, whatever their ranks
        rank, left, right = bpe.merge_of[made]
        if min(scores[left], scores[right]) > UNREACHABLE:
            scores[made] = storable(float(scores[left] + scores[right] + gain(rank)))
    return scores


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


def best_split(string: str, score_of: Mapping[str, float], longest: int) -> float:
    """Score of the best segmentation of `string` into two or more tokens, -inf where there is none.

    Sums run left to right, as in `tokenizers`, so that both round alike.
    """
    best = [0.0] + [-math.inf] * len(string)
    size = len(string)
    for end in range(1, size + 1):
        for start in range(max(0, end - longest), end):
            if end - start == size:
                continue
            piece = score_of.get(string[start:end])
            if piece is not None and best[start] + piece > best[end]:
                best[end] = best[start] + piece
    return best[size]


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
            rival = best_split(string, score_of, longest)
            if rival >= score_of[string]:
                # a few units in the last place: a prefix in front of it rounds the sum once more
                score_of[string] = storable(rival + 8 * math.ulp(max(abs(rival), 1.0)))
                repaired[token_id] = score_of[string]
                raised.add(token_id)
                changed = True
        if not changed:
            return repaired, sorted(raised)


def run_cuts(base: Tokenizer, strings: Iterable[str]) -> str | None:
    """A pattern that cuts runs of one non-alphanumeric character (`====`, `Ġ----`) where the base's BPE cuts them.

    BPE joins a run from the left into ever larger tokens and leaves the rest at the end. For a sum the order of its
    terms is all one, so only a cut can tell `[12, 3]` from `[3, 12]`. The base is asked what it takes first off a run
    of each length, with what its tokens have before runs (`ĊĠĠĠĠ`); looking ahead at the rest tells the lengths apart.
    Runs shorter than four and runs of letters are too often part of something else.
    """
    heads: defaultdict[str, set[str]] = defaultdict(lambda: {""})
    longest: Counter[str] = Counter()
    known = set(strings)
    for string in known:
        found = RUN_TOKEN.fullmatch(string)
        if found and _is_symbol(found["character"]):
            heads[found["character"]].add(found["head"])
            longest[found["character"]] = max(longest[found["character"]], len(found["run"]))
    for character, white in product(heads, WHITE_SPACE):
        if white != character and known & {white + character, white + 2 * character}:
            heads[character].add(white)
    return (
        "|".join(
            _first_cut(base, head, character, 2 * longest[character])
            for character in sorted(heads)
            for head in sorted(heads[character], key=lambda head: (-len(head), head))
        )
        or None
    )


def _first_cut(base: Tokenizer, head: str, character: str, longest: int) -> str:
    """A pattern for what the base takes first off `head` and a run of any length, told by the length of the rest."""
    lengths: defaultdict[str, list[int]] = defaultdict(list)
    for length in range(SHORTEST_RUN, longest + 2):
        lengths[base.model.tokenize(head + character * length)[0].value].append(length)
    run = re.escape(character)
    cuts: list[str] = []
    for first in sorted(lengths, key=len, reverse=True):
        taken = max(0, len(first) - len(head))
        rests: list[str] = []
        for low, high in _ranges(lengths[first]):
            if high > longest:  # and so for all longer runs
                rests.append(f"{run}{{{low - taken},}}")
            else:
                rests.append(f"{run}{{{low - taken},{high - taken}}}(?!{run})")
        cuts.append(f"{re.escape(first)}(?={re.escape(head[len(first) :])}(?:{'|'.join(rests)}))")
    # most text has no run: one look ahead says so
    return f"(?={re.escape(head)}{run}{{{SHORTEST_RUN}}})(?:{'|'.join(cuts)})"


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges, first and last."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _is_symbol(character: str) -> bool:
    text = text_of(character)
    return text != "\ufffd" and not text.isalnum()


def unigram_tokenizer(
    base: Tokenizer,
    strings: Sequence[str],
    scores: np.ndarray,
    *,
    cuts: str | None = None,
    pattern: str | None = None,
) -> Tokenizer:
    """A Unigram tokenizer with these strings at these ids, and everything around the model as in `base`.

    Args:
        base: the base tokenizer: its normalizer, pre-tokenizer, post-processor, decoder and added tokens are kept.
        strings: token of every id, V entries, added tokens included.
        scores: float64 [V].
        cuts: a pattern over byte-level strings; its matches become pre-tokens of their own after ByteLevel.
        pattern: takes the place of the base's pre-tokenizer pattern, for phrases across its pre-tokens.
    """
    spec: dict[str, Any] = json.loads(base.to_str())
    added = {token["id"] for token in spec["added_tokens"]}
    size = len(strings)
    while size and size - 1 in added and strings[size - 1] not in spec["model"]["vocab"]:
        size -= 1  # added tokens behind the model's own vocabulary stay behind it
    tokenizer = Tokenizer(models.Unigram([(s, float(x)) for s, x in zip(strings[:size], scores[:size], strict=True)]))
    if base.normalizer is not None:
        tokenizer.normalizer = base.normalizer
    parts: list[Any] = [base.pre_tokenizer]
    if pattern is not None:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level]
    missing = sorted(set(CHARACTER_TO_BYTE) - set(strings))
    if missing:  # bytes that the base drops without a word; Unigram would fail on them
        parts.append(pre_tokenizers.Split(Regex("[" + "".join(f"\\x{{{ord(c):x}}}" for c in missing) + "]"), "removed"))
    if cuts:
        parts.append(pre_tokenizers.Split(Regex(cuts), "isolated"))
    tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    tokenizer.decoder = base.decoder
    if base.post_processor is not None:
        tokenizer.post_processor = base.post_processor
    for token in sorted(spec["added_tokens"], key=lambda token: int(token["id"])):
        flags = {key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        add = tokenizer.add_special_tokens if token["special"] else tokenizer.add_tokens
        add([AddedToken(token["content"], **flags)])
    return tokenizer


def distill(base: Tokenizer, bpe: ByteLevelBPE) -> tuple[Tokenizer, list[int]]:
    """The distilled tokenizer, and the ids whose score had to be repaired."""
    closed_form = scores_from_merges(bpe)
    by_rank = [made for made in bpe.merge_of if made not in bpe.added_ids and closed_form[made] > UNREACHABLE]
    scores, raised = repair_scores(bpe.strings, closed_form, by_rank)
    return unigram_tokenizer(base, bpe.strings, scores, cuts=run_cuts(base, bpe.strings)), raised


def scores_with_new(bpe: ByteLevelBPE, strings: Sequence[str]) -> np.ndarray:
    """Scores of a vocabulary in which some base tokens have given way to new strings, float64 [len(strings)].

    Kept tokens start from the closed form; each new one, the shorter first, scores just above its best other
    segmentation; then every token is made the best segmentation of itself.
    """
    base_scores = scores_from_merges(bpe)
    scores = np.full(len(strings), UNREACHABLE)
    for position, string in enumerate(strings):
        if string in bpe.ids:
            scores[position] = base_scores[bpe.ids[string]]
    score_of = {s: float(x) for s, x in zip(strings, scores, strict=True) if x > UNREACHABLE}
    longest = max(map(len, strings))
    order = sorted(range(len(strings)), key=lambda i: (len(strings[i]), i))
    for position in order:
        string = strings[position]
        if string not in bpe.ids:
            score_of[string] = storable(best_split(string, score_of, longest) + NEW_TOKEN_GAIN)
            scores[position] = score_of[string]
    return repair_scores(strings, scores, [i for i in order if scores[i] > UNREACHABLE])[0]


def extended_tokenizer(base: Tokenizer, bpe: ByteLevelBPE, new: Sequence[str]) -> Tokenizer:
    """The distilled tokenizer with strings added behind its vocabulary: how new tokens segment before ids are given."""
    strings = [*bpe.strings, *new]
    return unigram_tokenizer(base, strings, scores_with_new(bpe, strings), cuts=run_cuts(base, bpe.strings))
