"""The sample corpus: reproducible, and unchanged files are not rewritten."""

import json
from pathlib import Path

import pytest

from ivr_dagster.errors import InputError
from ivr_dagster.sample.corpus import SampleCorpus, write_sample_corpus

FILES = ("docstrings.jsonl", "topics.jsonl")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SampleCorpus:
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "raw")


def _documents(corpus: SampleCorpus) -> list[dict[str, str]]:
    return [
        json.loads(line) for name in FILES for line in (corpus.path / name).read_text(encoding="utf-8").splitlines()
    ]


def test_corpus_has_about_two_megabytes_in_several_hundred_documents(corpus: SampleCorpus) -> None:
    documents = _documents(corpus)
    assert len(documents) == corpus.documents > 400
    assert sum(len(document["text"].encode()) for document in documents) == corpus.bytes
    assert 1_000_000 < corpus.bytes < 4_000_000
    assert all(set(document) == {"text", "name"} and document["text"] for document in documents)


def test_corpus_includes_python_modules_c_modules_and_help_topics(corpus: SampleCorpus) -> None:
    texts = {document["name"]: document["text"] for document in _documents(corpus)}
    assert "Command-line parsing library" in texts["argparse"]
    assert "Return the arc cosine" in texts["math"]
    assert "statement" in texts["while"]
    assert not any(name.split(".")[0] in {"test", "idlelib"} for name in texts)


def test_no_docstring_occurs_twice(corpus: SampleCorpus) -> None:
    lines = (corpus.path / "docstrings.jsonl").read_text(encoding="utf-8").splitlines()
    # inherited by every class of builtins
    assert sum("Initialize self.  See help(type(self)) for accurate signature." in line for line in lines) == 1


def test_writing_again_changes_neither_bytes_nor_times(corpus: SampleCorpus) -> None:
    before = {name: ((corpus.path / name).read_bytes(), (corpus.path / name).stat().st_mtime_ns) for name in FILES}
    (corpus.path / "topics.jsonl").write_text("spoilt")
    assert write_sample_corpus(corpus.path) == corpus
    untouched = corpus.path / "docstrings.jsonl"
    assert (untouched.read_bytes(), untouched.stat().st_mtime_ns) == before["docstrings.jsonl"]
    assert (corpus.path / "topics.jsonl").read_bytes() == before["topics.jsonl"][0]
    assert sorted(path.name for path in corpus.path.iterdir()) == sorted(FILES)


def test_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("")
    with pytest.raises(InputError, match=r"raw: .*is a file"):
        write_sample_corpus(tmp_path / "raw")
