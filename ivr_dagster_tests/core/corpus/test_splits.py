"""The split depends only on the document."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus.splits import document_id, is_heldout

FRACTIONS = st.floats(0, 1)


def test_document_id_is_128_bits_of_blake2b_over_utf8() -> None:
    assert document_id("한국어") == hashlib.blake2b("한국어".encode(), digest_size=16).hexdigest()
    assert len(document_id("")) == 32


@given(st.text(st.characters(codec="utf-8")), FRACTIONS, FRACTIONS)
def test_larger_fraction_only_adds_heldout_documents(text: str, one: float, other: float) -> None:
    smaller, larger = sorted((one, other))
    assert is_heldout(document_id(text), larger) or not is_heldout(document_id(text), smaller)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.05, 0.5, 1.0])
def test_heldout_share_is_near_the_fraction(fraction: float) -> None:
    documents = 20_000
    heldout = sum(is_heldout(document_id(str(number)), fraction) for number in range(documents))
    # five standard deviations of a binomial
    assert abs(heldout - documents * fraction) <= 5 * (documents * fraction * (1 - fraction)) ** 0.5
