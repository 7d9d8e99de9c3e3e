"""Scores and their repair: against brute force, exact integers, and BPE."""

import json
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.scores import (
    LEAST_GAIN,
    UNREACHABLE,
    WHOLE_GAIN,
    best_split,
    gains_from_ranks,
    lift_gains,
    repair_scores,
    scores_from_gains,
    scores_from_merges,
    storable,
    unreachable_ids,
)
from ivr_dagster.core.tokenizer.unigram import distill

STRING = st.text("abc", min_size=1, max_size=7)


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[list[str], np.ndarray]:
    """The letters a, b, c and up to ten strings of them, with scores of all magnitudes."""
    strings = ["a", "b", "c", *sorted(draw(st.sets(st.text("abc", min_size=2, max_size=5), max_size=10)))]
    score = st.floats(-10, 10) | st.sampled_from([0.0, 1.0, 1e-9, 1 / 3])
    return strings, np.array([draw(score) for _ in strings])


def segmentations(string: str, strings: list[str]) -> Iterator[list[str]]:
    """Every way to write `string` as tokens."""
    if not string:
        yield []
    for end in range(1, len(string) + 1):
        if string[:end] in strings:
            for rest in segmentations(string[end:], strings):
                yield [string[:end], *rest]


def score(pieces: list[str], score_of: dict[str, float]) -> float:
    """Left to right, as both Viterbis add."""
    total = 0.0
    for piece in pieces:
        total += score_of[piece]
    return total


@given(vocabularies(), STRING)
def test_viterbi_of_tokenizers_finds_the_best_segmentation(
    vocabulary: tuple[list[str], np.ndarray], string: str
) -> None:
    strings, scores = vocabulary
    score_of = dict(zip(strings, map(float, scores), strict=True))
    model = models.Unigram(list(score_of.items()))
    found = [token.value for token in model.tokenize(string)]
    assert "".join(found) == string
    assert score(found, score_of) == max(score(pieces, score_of) for pieces in segmentations(string, strings))


@given(vocabularies(), STRING)
def test_best_split_is_the_best_segmentation_into_two_or_more(
    vocabulary: tuple[list[str], np.ndarray], string: str
) -> None:
    strings, scores = vocabulary
    score_of = dict(zip(strings, map(float, scores), strict=True))
    rivals = [(score(pieces, score_of), len(pieces)) for pieces in segmentations(string, strings) if len(pieces) > 1]
    found = best_split(string, score_of, max(map(len, strings)))
    assert found[0] == max(rivals, default=(-math.inf, 0))[0]
    assert found in rivals or (found == (-math.inf, 0) and not rivals)


@given(vocabularies())
def test_repaired_token_is_the_only_best_segmentation_of_itself(
    vocabulary: tuple[list[str], np.ndarray],
) -> None:
    strings, scores = vocabulary
    before = scores.copy()
    repaired, raised = repair_scores(strings, scores, range(len(strings)))
    np.testing.assert_array_equal(scores, before)
    assert [n for n in range(len(strings)) if repaired[n] != scores[n]] == raised
    assert all(repaired >= scores)
    score_of = dict(zip(strings, map(float, repaired), strict=True))
    model = models.Unigram(list(score_of.items()))
    for string in strings:
        best, *others = sorted((score(p, score_of) for p in segmentations(string, strings)), reverse=True)
        assert score_of[string] == best
        assert not others or others[0] < best
        assert [token.value for token in model.tokenize(string)] == [string]


def test_repair_changes_only_the_given_ids() -> None:
    strings, scores = ["a", "b", "ab", "ba"], np.array([1.0, 1.0, 0.0, 0.0])
    repaired, raised = repair_scores(strings, scores, [3])
    assert raised == [3]
    assert repaired[3] > 2.0
    assert repaired[:3].tolist() == [1.0, 1.0, 0.0]


@given(st.lists(st.floats(1e-16, 1e4) | st.floats(-1e6, -1e-16) | st.sampled_from([0.0, UNREACHABLE])))
def test_storable_score_survives_json(scores: list[float]) -> None:
    kept = [storable(score) for score in scores]
    for score, stored in zip(scores, kept, strict=True):
        assert 0 <= stored - score <= 64 * math.ulp(score)
    tokenizer = Tokenizer(models.Unigram([(str(n), score) for n, score in enumerate(kept)]))
    back = json.loads(Tokenizer.from_str(tokenizer.to_str()).to_str())["model"]["vocab"]
    assert [score for _, score in back] == kept


def test_score_is_the_sum_of_both_halves_and_the_gain(bpe_of: Callable[..., Tokenizer]) -> None:
    bpe = read_bpe(bpe_of(["ab", "abc", "zz"], [("a", "b"), ("ab", "c")]))
    scores = scores_from_gains(bpe, {256: 0.5, 257: 0.25})
    assert scores[:256].tolist() == [0.0] * 256
    assert scores[256:].tolist() == [0.5, 0.75, UNREACHABLE]


def test_halves_with_a_later_merge_are_scored_first(bpe_of: Callable[..., Tokenizer]) -> None:
    bpe = read_bpe(bpe_of(["abc", "ab"], [("ab", "c"), ("a", "b")]))
    assert scores_from_gains(bpe, {256: 0.5, 257: 0.25})[256:].tolist() == [0.75, 0.25]


def test_early_merge_is_lifted_above_the_sum_of_late_ones(
    bpe_of: Callable[..., Tokenizer],
) -> None:
    merges = [("b", "c"), ("a", "b"), ("c", "d"), ("a", "bc"), ("abc", "d")]
    base = bpe_of([left + right for left, right in merges], merges)
    bpe = read_bpe(base)
    gains = {bpe.ids[s]: gain for s, gain in {"bc": 1.0, "ab": 0.7, "cd": 0.6, "abc": 0.1, "abcd": 0.05}.items()}

    def tokens(gains: dict[int, float]) -> list[str]:
        pairs = zip(bpe.strings, map(float, scores_from_gains(bpe, gains)), strict=True)
        return [token.value for token in models.Unigram(list(pairs)).tokenize("abcd")]

    assert tokens(gains) == ["ab", "cd"]
    lifted = lift_gains(bpe, gains)[0]
    assert tokens(lifted) == ["abcd"] == base.encode("abcd").tokens
    early = bpe.ids["bc"]
    assert 0.7 + 0.6 - 0.1 - 0.05 < lifted[early] < 1.2
    assert lifted == gains | {early: lifted[early]}


@st.composite
def merges_of_distinct_letters(draw: st.DrawFn) -> tuple[list[tuple[str, str]], list[float]]:
    """Merges, halves first, of strings without repeated letters, with gains in any order."""
    pool, merges = list("abcdef"), list[tuple[str, str]]()
    for _ in range(draw(st.integers(1, 20))):
        left, right = draw(st.sampled_from(pool)), draw(st.sampled_from(pool))
        if not set(left) & set(right) and left + right not in pool:
            merges.append((left, right))
            pool.append(left + right)
    return merges, [draw(st.floats(1e-6, 1.0)) for _ in merges]


@given(merges_of_distinct_letters())
def test_lifts_suffice_for_strings_without_repeated_letters(
    bpe_of: Callable[..., Tokenizer], drawn: tuple[list[tuple[str, str]], list[float]]
) -> None:
    merges, values = drawn
    base = bpe_of([left + right for left, right in merges], merges)
    bpe = read_bpe(base)
    gains = {made: value for (_, _, made), value in zip(bpe.merges, values, strict=True)}
    lifted = lift_gains(bpe, gains)[0]
    assert lifted.keys() == gains.keys()
    assert all(lifted[made] >= gains[made] for made in gains)
    strings = [string for string in bpe.strings if set(string) <= set("abcdef")]
    score_of = dict(zip(bpe.strings, map(float, scores_from_gains(bpe, lifted)), strict=True))
    for made in bpe.merge_of:
        string = bpe.strings[made]
        if base.encode(string).ids == [made]:
            best = max(score(pieces, score_of) for pieces in segmentations(string, strings))
            assert score_of[string] == pytest.approx(best, rel=1e-12)


def test_lifts_leave_few_tokens_of_gpt2_to_repair(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    gains = gains_from_ranks(gpt2_bpe)
    lifted = lift_gains(gpt2_bpe, gains)[0]
    assert lifted.keys() == gains.keys()
    assert all(lifted[made] >= gains[made] for made in gains)
    assert any(lifted[made] > gains[made] for made in gains)
    last = gpt2_bpe.merges[-1][2]
    assert lifted[last] == gains[last] == pytest.approx(LEAST_GAIN, rel=1e-3)
    scores, raised = scores_from_merges(gpt2_bpe)
    of_gains = scores_from_gains(gpt2_bpe, lifted)
    assert raised == tuple(np.flatnonzero(scores != of_gains))
    assert all(scores >= of_gains)
    made = [token_id for token_id in gpt2_bpe.merge_of if token_id not in gpt2_bpe.added_ids]
    without_lifts = repair_scores(gpt2_bpe.strings, scores_from_gains(gpt2_bpe, gains), made)[1]
    assert 10 * len(raised) < len(without_lifts)


def test_every_token_of_gpt2_beats_all_other_segmentations_exactly(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    """In exact arithmetic: every score is a whole number of 2**-100."""
    scores, raised = scores_from_merges(gpt2_bpe)
    exact = [int(float(score) * 2.0**100) for score in scores]
    assert [number / 2**100 for number in exact] == scores.tolist()
    of = {s: number for s, number in zip(gpt2_bpe.strings, exact, strict=True) if number > UNREACHABLE * 2**100}
    assert len(of) == 50_256
    beaten = []
    for string, number in of.items():
        best: list[int | None] = [0]  # best sums of the beginnings, without the whole string as one token
        for end in range(1, len(string) + 1):
            starts = (start for start in range(end) if end - start < len(string) and string[start:end] in of)
            sums = [so_far + of[string[start:end]] for start in starts if (so_far := best[start]) is not None]
            best.append(max(sums, default=None))
        if (rival := best[-1]) is not None and rival >= number:
            beaten.append(string)
    assert beaten == []
    assert len(raised) <= 36


def test_every_token_of_gpt2_encodes_to_itself_after_saving(gpt2_distilled: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    added, stored = gpt2_bpe.added_ids, Tokenizer.from_str(gpt2_distilled.to_str())
    other = {
        string: [token.value for token in stored.model.tokenize(string)]
        for token_id, string in enumerate(gpt2_bpe.strings)
        if token_id not in added
    }
    assert len(other) == 50_256
    assert {string: pieces for string, pieces in other.items() if pieces != [string]} == {}


NEVER_MADE = (["bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")])  # bc comes first and takes the b


@given(st.text("abcx", max_size=12))
def test_token_that_merges_never_complete_is_never_produced(bpe_of: Callable[..., Tokenizer], text: str) -> None:
    base = bpe_of(*NEVER_MADE)
    bpe = read_bpe(base)
    never = bpe.ids["abc"]
    assert unreachable_ids(bpe) == {never}
    assert scores_from_merges(bpe)[0].tolist().index(UNREACHABLE) == never
    tokenizer = distill(base, bpe).tokenizer
    assert tokenizer.encode("abc").ids == base.encode("abc").ids == [bpe.ids["a"], bpe.ids["bc"]]
    assert never not in base.encode(text).ids
    assert never not in tokenizer.encode(text).ids


def test_ignored_merges_produce_it_as_a_whole_pretoken(bpe_of: Callable[..., Tokenizer]) -> None:
    base = bpe_of(*NEVER_MADE, ignore_merges=True)
    bpe = read_bpe(base)
    assert unreachable_ids(bpe) == frozenset()
    assert base.encode("abc").tokens == ["abc"]
    assert base.encode("abcx").tokens == ["a", "bc", "x"]
    tokenizer = distill(base, bpe).tokenizer
    assert tokenizer.encode("abc").tokens == ["abc"]
    assert tokenizer.encode("bc").tokens == ["bc"]


def test_tokens_made_of_unreachable_ones_are_never_produced(
    bpe_of: Callable[..., Tokenizer],
) -> None:
    base = bpe_of(["ab", "cd", "abx", "abcd"], [("ab", "x"), ("ab", "cd")])
    bpe = read_bpe(base)
    assert unreachable_ids(bpe) == {bpe.ids[string] for string in ("ab", "cd", "abx", "abcd")}
    tokenizer = distill(base, bpe).tokenizer
    for text in ("abcd", "ab", "abx", "xabcdx"):
        assert tokenizer.encode(text).ids == base.encode(text).ids == [base.token_to_id(letter) for letter in text]


def test_token_without_a_merge_scores_barely_above_its_best_split(bpe_of: Callable[..., Tokenizer]) -> None:
    base = bpe_of(["ab", "abc", "abxab", "abxabxab"], [("a", "b"), ("ab", "c")], ignore_merges=True)
    bpe = read_bpe(base)
    scores, _ = scores_from_merges(bpe)
    ab, longer, longest = (scores[bpe.ids[string]] for string in ("ab", "abxab", "abxabxab"))
    assert longer - 2 * ab == pytest.approx(WHOLE_GAIN)
    assert longest - (longer + ab) == pytest.approx(WHOLE_GAIN)  # x scores 0
    assert scores_from_merges(bpe)[0] is scores
    with pytest.raises(ValueError, match="read-only"):
        scores[0] = 1.0
    tokenizer = distill(base, bpe).tokenizer
    for text in ("abxab", "abxabxab", "abc", "abcab"):
        assert tokenizer.encode(text).tokens == base.encode(text).tokens


def test_token_with_a_byte_that_has_no_token_is_unreachable(bpe_of: Callable[..., Tokenizer]) -> None:
    base = bpe_of(["dab", "ab"], [("a", "b")], lacking="d", ignore_merges=True)
    bpe = read_bpe(base)
    assert scores_from_merges(bpe)[0][bpe.ids["dab"]] == UNREACHABLE
    stored = Tokenizer.from_str(distill(base, bpe).tokenizer.to_str())
    assert stored.encode("xdab").tokens == base.encode("xdab").tokens == ["x", "ab"]
