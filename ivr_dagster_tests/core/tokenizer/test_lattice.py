"""The lattice, against the Viterbi of tokenizers and a search string by string."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.lattice import Lattice, Vocabulary
from ivr_dagster.core.tokenizer.scores import best_split, scores_from_merges
from ivr_dagster.core.tokenizer.segments import encode_each
from ivr_dagster.core.tokens.byte_level import strings_of
from ivr_dagster.core.tokens.counts import PretokenCounts

LETTERS = "abĠ한"
STRINGS = st.lists(st.text(LETTERS, max_size=12), max_size=8)


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[list[str], np.ndarray]:
    """All letters and some strings of them, with scores that often tie."""
    longer = st.text(LETTERS, min_size=2, max_size=6)
    strings = [*LETTERS, *sorted(draw(st.sets(longer, max_size=12)))]
    score = st.floats(-10, 10) | st.sampled_from([0.0, 1.0, 2.0, 1e-9, 1 / 3, -1e6])
    return strings, np.array([draw(score) for _ in strings])


@given(vocabularies(), STRINGS)
def test_best_path_equals_that_of_tokenizers_including_ties(
    vocabulary: tuple[list[str], np.ndarray], strings: list[str]
) -> None:
    tokens, scores = vocabulary
    model = models.Unigram(list(zip(tokens, scores.tolist(), strict=True)))
    found = Lattice(Vocabulary(tokens), strings).best(scores)
    expected = [[token.id for token in model.tokenize(string)] for string in strings]
    assert found.segments.lists() == expected
    assert found.tokens.tolist() == [len(ids) for ids in expected]
    for total, ids in zip(found.totals.tolist(), expected, strict=True):
        assert total == sum(scores[ids].tolist())


@given(vocabularies(), STRINGS)
def test_best_split_equals_the_search_string_by_string(
    vocabulary: tuple[list[str], np.ndarray], strings: list[str]
) -> None:
    tokens, scores = vocabulary
    score_of = dict(zip(tokens, scores.tolist(), strict=True))
    found = Lattice(Vocabulary(tokens), [*tokens, *strings]).best(scores, split=True)
    expected = [best_split(string, score_of, max(map(len, tokens))) for string in [*tokens, *strings] if string]
    figures = zip(found.totals.tolist(), found.tokens.tolist(), strict=True)
    assert [each for string, each in zip([*tokens, *strings], figures, strict=True) if string] == expected


def test_string_without_a_path_does_not_affect_others() -> None:
    found = Lattice(Vocabulary(["a", "ab"]), ["abc", "aab", "b", ""]).best(np.array([1.0, 1.5]))
    assert found.totals.tolist() == [-math.inf, 2.5, -math.inf, 0.0]
    assert found.tokens.tolist() == [0, 2, 0, 0]
    assert found.segments.lists() == [[], [0, 1], [], []]


def test_unusable_token_is_not_taken() -> None:
    found = Lattice(Vocabulary(["a", "b", "ab"]), ["ab"]).best(np.array([0.0, 0.0, -math.inf]))
    assert found.segments.lists() == [[0, 1]]


def test_lattice_is_searched_again_with_other_scores() -> None:
    lattice = Lattice(Vocabulary(["a", "b", "ab"]), ["abab", "b"])
    assert lattice.best(np.array([0.0, 0.0, 1.0])).segments.lists() == [[2, 2], [1]]
    assert lattice.best(np.array([0.0, 0.0, -1.0])).segments.lists() == [[0, 1, 0, 1], [1]]


@pytest.mark.parametrize("strings", [[], [""], ["", ""]])
def test_empty_strings_have_no_tokens(strings: list[str]) -> None:
    found = Lattice(Vocabulary(["a"]), strings).best(np.zeros(1))
    assert found.totals.tolist() == [0.0] * len(strings)
    assert found.segments.lists() == [[]] * len(strings)


def test_words_of_real_text_get_the_ids_of_tokenizers(gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts) -> None:
    scores, _ = scores_from_merges(gpt2_bpe)
    strings = strings_of(topics_counts.types)
    model = models.Unigram(list(zip(gpt2_bpe.strings, scores.tolist(), strict=True)))
    expected = encode_each(Tokenizer(model), strings)
    found = Lattice(Vocabulary(gpt2_bpe.strings), strings).best(scores).segments
    np.testing.assert_array_equal(found.starts, expected.starts)
    np.testing.assert_array_equal(found.ids, expected.ids)
