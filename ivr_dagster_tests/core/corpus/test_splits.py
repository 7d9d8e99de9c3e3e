"""The split is a property of the document alone."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus.splits import document_id, is_heldout
from ivr_dagster.errors import InputError

FRACTIONS = st.floats(0, 1)


def test_the_id_is_128_bits_of_blake2b_over_utf8() -> None:
    assert document_id("한국어") == hashlib.blake2b("한국어".encode(), digest_size=16).hexdigest()
    assert len(document_id("")) == 32


@given(st.text(st.characters(codec="utf-8")), FRACTIONS, FRACTIONS)
def test_a_larger_fraction_only_adds_to_those_held_out(text: str, one: float, other: float) -> None:
    smaller, larger = sorted((one, other))
    assert is_heldout(document_id(text), larger) or not is_heldout(document_id(text), smaller)


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=20), st.text(st.characters(codec="utf-8")))
def test_adding_a_document_moves_no_other(texts: list[str], added: str) -> None:
    before = {text: is_heldout(document_id(text), 0.5) for text in texts}
    after = {text: is_heldout(document_id(text), 0.5) for text in [added, *texts]}
    assert before.items() <= after.items()


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.5])
def test_the_held_out_share_is_near_the_fraction(fraction: float) -> None:
    documents = 20_000
    heldout = sum(is_heldout(document_id(str(number)), fraction) for number in range(documents))
    # five standard deviations of a binomial
    assert abs(heldout - documents * fraction) < 5 * (documents * fraction * (1 - fraction)) ** 0.5


def test_nothing_is_held_out_at_0_and_everything_at_1() -> None:
    for extreme in ("0" * 32, "f" * 32):
        assert not is_heldout(extreme, 0)
        assert is_heldout(extreme, 1)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_to_1_is_named(fraction: float) -> None:
    with pytest.raises(InputError, match=rf"{fraction}.*--heldout-fraction"):
        is_heldout(document_id(""), fraction)
