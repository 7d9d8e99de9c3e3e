"""Selecting and reading out-of-domain text."""

from pathlib import Path

import pytest

from ivr_dagster.core.corpus.other_text import PIECE_BYTES, read_other_documents, select_other_texts
from ivr_dagster.core.corpus.splits import document_id
from ivr_dagster.errors import InputError
from ivr_dagster.settings.groups import CorpusSettings

DOCUMENTS = [f"Document number {number} says little, and that in a line.\n" for number in range(50)]


def test_documents_of_the_corpus_are_excluded() -> None:
    known = [document_id(text) for text in DOCUMENTS[10:]]
    assert sorted(select_other_texts(DOCUMENTS, known, 0)) == sorted(DOCUMENTS[:10])
    assert select_other_texts(DOCUMENTS, map(document_id, DOCUMENTS), 0) == []


def test_documents_are_cleaned_before_they_are_compared() -> None:
    assert select_other_texts(["on\x07e\r\n", " \n"], [document_id("one\n")], 0) == []


def test_selection_does_not_depend_on_order_and_grows_with_the_bytes() -> None:
    few = select_other_texts(DOCUMENTS, [], 500)
    assert few == select_other_texts(DOCUMENTS[::-1], [], 500)
    assert 300 < sum(len(text.encode()) for text in few) <= 500
    assert select_other_texts(DOCUMENTS, [], 1000)[: len(few)] == few


def test_selections_from_both_ends_overlap_only_if_all_is_selected() -> None:
    first, last = (select_other_texts(DOCUMENTS, [], 1000, from_the_end=end) for end in (False, True))
    assert len(last) > 10
    assert not set(first) & set(last)
    assert select_other_texts(DOCUMENTS, [], 0, from_the_end=True) == select_other_texts(DOCUMENTS, [], 0)


def test_long_documents_are_cut_into_pieces() -> None:
    long = "".join(f"Line {number} of a long document.\n\n" for number in range(1000))
    texts = select_other_texts([long], [], 0)
    assert len(texts) > 5
    assert all(len(text.encode()) <= PIECE_BYTES for text in texts)
    assert {line for text in texts for line in text.split("\n") if line} == {line for line in long.split("\n") if line}


def test_other_documents_are_read_like_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "of JSON"}\n', encoding="utf-8")
    found = read_other_documents(tmp_path, CorpusSettings(text_key="body"), "general_corpora_dir")
    assert list(found) == ["plain", "of JSON"]


@pytest.mark.parametrize("setting", ["general_corpora_dir", "retention_corpora_dir"])
def test_folder_without_text_is_refused_with_its_setting(tmp_path: Path, setting: str) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"--{setting.replace('_', '-')}") as error:
            list(read_other_documents(folder, CorpusSettings(), setting))
        assert error.value.where == folder
