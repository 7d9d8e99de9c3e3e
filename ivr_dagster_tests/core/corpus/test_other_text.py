from pathlib import Path

import pytest

from ivr_dagster.core.corpus.other_text import PIECE_BYTES, other_texts, read_other_documents
from ivr_dagster.core.corpus.splits import document_id
from ivr_dagster.errors import InputError

DOCUMENTS = [f"Document number {number} says little, and that in a line.\n" for number in range(50)]


def test_what_the_corpus_holds_is_left_out() -> None:
    known = [document_id(text) for text in DOCUMENTS[10:]]
    assert sorted(other_texts(DOCUMENTS, known, 0)) == sorted(DOCUMENTS[:10])
    assert other_texts(DOCUMENTS, map(document_id, DOCUMENTS), 0) == []


def test_documents_are_cleaned_before_they_are_compared() -> None:
    assert other_texts(["on\x07e\r\n", " \n"], [document_id("one\n")], 0) == []


def test_the_choice_is_the_same_in_any_order_and_grows_with_the_bytes() -> None:
    few = other_texts(DOCUMENTS, [], 500)
    assert few == other_texts(DOCUMENTS[::-1], [], 500)
    assert 300 < sum(len(text.encode()) for text in few) <= 500
    assert other_texts(DOCUMENTS, [], 1000)[: len(few)] == few


def test_what_is_taken_from_the_two_ends_meets_only_where_all_is_taken() -> None:
    first, last = (other_texts(DOCUMENTS, [], 1000, from_the_end=end) for end in (False, True))
    assert len(last) > 10
    assert not set(first) & set(last)
    assert other_texts(DOCUMENTS, [], 0, from_the_end=True) == other_texts(DOCUMENTS, [], 0)


def test_long_documents_are_cut_so_that_none_decides_the_figure() -> None:
    long = "".join(f"Line {number} of a long document.\n\n" for number in range(1000))
    texts = other_texts([long], [], 0)
    assert len(texts) > 5
    assert all(len(text.encode()) <= PIECE_BYTES for text in texts)
    assert {line for text in texts for line in text.split("\n") if line} == {line for line in long.split("\n") if line}


def test_a_persons_folder_is_read_as_a_corpus_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "of JSON"}\n', encoding="utf-8")
    assert list(read_other_documents(tmp_path, text_key="body", encoding="utf-8", text_split_bytes=0)) == [
        "plain",
        "of JSON",
    ]


def test_a_folder_without_text_is_refused_by_its_setting(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="--retention-corpora-dir") as error:
            list(read_other_documents(folder, text_key="text", encoding="utf-8", text_split_bytes=0))
        assert error.value.where == folder
    with pytest.raises(InputError, match="--general-corpora-dir"):
        list(
            read_other_documents(
                tmp_path, text_key="text", encoding="utf-8", text_split_bytes=0, setting="general_corpora_dir"
            )
        )
