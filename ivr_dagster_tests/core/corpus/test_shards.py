"""How files are grouped, and that a change of one moves only what is next to it."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus.cleaned import CleanedCorpus, CleaningSettings, write_cleaned_corpus
from ivr_dagster.core.corpus.shards import LEAST_SHARD, CorpusFile, read_corpus_files, shards_of
from ivr_dagster.core.shard_results import ShardResults

SIZES = st.lists(st.integers(0, 3 * LEAST_SHARD), min_size=1, max_size=60)


def files_of(sizes: list[int]) -> list[CorpusFile]:
    return [CorpusFile(Path(f"{n:05d}.txt"), f"{n:05d}.txt", size, b"") for n, size in enumerate(sizes)]


@given(SIZES)
def test_every_file_is_in_one_shard_in_order(sizes: list[int]) -> None:
    files = files_of(sizes)
    assert [file for shard in shards_of(files) for file in shard] == files
    assert all(shards_of(files))


@given(SIZES)
def test_large_files_stand_alone_and_no_shard_grows_without_end(sizes: list[int]) -> None:
    for shard in shards_of(files_of(sizes)):
        assert all(file.size < LEAST_SHARD // 2 for file in shard[:-1])
        assert sum(file.size for file in shard[:-1]) <= 4 * LEAST_SHARD


def test_small_files_are_grouped_to_about_the_size_aimed_at() -> None:
    shards = shards_of(files_of([1_000] * 20_000))
    assert LEAST_SHARD / 4 < 20_000_000 / len(shards) < LEAST_SHARD


def test_a_file_that_comes_moves_no_boundary_but_those_beside_it() -> None:
    files = files_of([20_000] * 2_000)
    before = {tuple(file.name for file in shard) for shard in shards_of(files)}
    more = sorted([*files, CorpusFile(Path("00700a.txt"), "00700a.txt", 20_000, b"")], key=lambda file: file.name)
    after = {tuple(file.name for file in shard) for shard in shards_of(more)}
    assert len(before) > 100
    assert len(before - after) <= 2


def test_files_are_told_by_name_size_and_content(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("한국어")
    (tmp_path / "a.txt").write_text("one")
    assert read_corpus_files(tmp_path) == [
        CorpusFile(tmp_path / "a.txt", "a.txt", 3, hashlib.blake2b(b"one").digest()),
        CorpusFile(tmp_path / "b" / "x.txt", "b/x.txt", 9, hashlib.blake2b("한국어".encode()).digest()),
    ]


def lines(first: int, last: int) -> str:
    return "\n".join(json.dumps({"text": f"document {n} " + "word " * 400}) for n in range(first, last))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jsonl").write_text(lines(100 * number, 100 * number + 130))  # 30 stand in the next one too
    return folder


def places(results: ShardResults) -> dict[str, int]:
    return {place.name: place.stat().st_ino for place in results.path.iterdir()}


def test_a_changed_file_costs_its_own_shard_and_comes_out_as_if_all_were_read(raw: Path, tmp_path: Path) -> None:
    results = ShardResults(tmp_path / "results")
    write_cleaned_corpus(raw, tmp_path / "cleaned", results=results)
    before = places(results)
    (raw / "3.jsonl").write_text(lines(300, 380))
    counts = write_cleaned_corpus(raw, tmp_path / "cleaned", results=results)
    after = places(results)
    # its own shard, and what is left of it and of the one behind it without duplicates
    assert 1 <= len(after.items() - before.items()) <= 3
    assert len(after) >= 8
    assert counts == write_cleaned_corpus(raw, tmp_path / "whole")
    for split in ("train", "heldout"):
        found = [part.read_bytes() for part in CleanedCorpus(tmp_path / "cleaned").parts(split)]
        assert found == [part.read_bytes() for part in CleanedCorpus(tmp_path / "whole").parts(split)]


def test_duplicates_are_found_across_shards_and_the_first_is_kept(raw: Path, tmp_path: Path) -> None:
    counts = write_cleaned_corpus(raw, tmp_path / "cleaned")
    assert counts.dropped_duplicates == 7 * 30
    corpus = CleanedCorpus(tmp_path / "cleaned")
    assert counts.train_documents + counts.heldout_documents == 830
    texts = list(corpus.texts("train"))
    assert [int(text.split()[1]) for text in texts] == sorted({int(text.split()[1]) for text in texts})


def test_other_settings_are_other_results(raw: Path, tmp_path: Path) -> None:
    results = ShardResults(tmp_path / "results")
    write_cleaned_corpus(raw, tmp_path / "cleaned", results=results)
    before = places(results)
    write_cleaned_corpus(raw, tmp_path / "cleaned", CleaningSettings(heldout_fraction=0.2), results=results)
    assert not places(results).keys() & before.keys()
