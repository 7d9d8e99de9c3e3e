"""Uniform samples of documents by their ids."""

from typing import Any

from ivr_dagster.core.corpus.subset import (
    MAX_VALIDATION_SHARE,
    document_sizes,
    documents_within,
    ids_within,
    split_validation,
)

SIZES = dict.fromkeys("abcdefghij", 100)


def test_document_sizes_are_bytes_not_characters() -> None:
    assert document_sizes([("a", "한글"), ("b", "x")]) == {"a": 6, "b": 1}


def test_documents_are_selected_in_order_of_their_ids_up_to_the_size() -> None:
    assert ids_within(SIZES, 250) == ({"a", "b"}, 200)
    assert ids_within(SIZES, 250, from_the_end=True) == ({"j", "i"}, 200)
    assert ids_within(SIZES, 0) == (set(SIZES), 1000)
    assert documents_within([("b", "xx"), ("a", "xx")], 3) == ({"a"}, 2)


def test_at_least_one_document_is_selected_even_if_it_is_too_long() -> None:
    assert ids_within(SIZES, 1) == ({"a"}, 100)
    assert ids_within({}, 1) == (set(), 0)


def validation_ids(*arguments: Any, **options: Any) -> tuple[set[str], int]:
    """Ids and bytes of the validation documents."""
    others, found = split_validation(*arguments, **options)
    assert others | found == arguments[0] and not others.keys() & found.keys()
    return set(found), sum(found.values())


def test_validation_selects_a_small_share_from_the_end() -> None:
    sizes = {f"{number:03}": 10 for number in range(100)}
    assert validation_ids(sizes, 10_000) == ({"095", "096", "097", "098", "099"}, round(MAX_VALIDATION_SHARE * 1000))
    assert validation_ids(sizes, 20) == ({"098", "099"}, 20)
    assert validation_ids(sizes, 10_000, train_bytes=400) == ({"098", "099"}, 20)


def test_validation_is_empty_if_unwanted_or_if_one_document_is_too_long() -> None:
    assert validation_ids(SIZES, 0) == (set(), 0)
    assert validation_ids(SIZES, 10_000) == ({"j"}, 100)  # just twice the 50 bytes wanted
    assert validation_ids(SIZES, 49) == (set(), 0)
    assert validation_ids({}, 100) == (set(), 0)
