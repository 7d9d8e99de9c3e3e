"""How files are grouped, and that a change of one moves only what is next to it."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus import cleaned, shards
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, CleaningSettings, write_cleaned_corpus
from ivr_dagster.core.corpus.documents import Document
from ivr_dagster.core.corpus.shards import LEAST_SHARD, CorpusFile, read_corpus_files, shards_of
from ivr_dagster.errors import InputError
from ivr_dagster.storage.file_hashes import FileHashCache, HashedFile
from ivr_dagster.storage.file_identity import FileIdentity
from ivr_dagster.storage.shard_cache import ShardCache

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


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for their hash."""
    names: list[str] = []
    plain = shards.hash_content
    monkeypatch.setattr(shards, "hash_content", lambda path: names.append(path.name) or plain(path))
    monkeypatch.setattr(shards, "GRAIN_NS", 0)  # the time of change of anything cannot be set back
    return names


def test_a_file_that_stays_as_it_was_is_read_once_for_its_hash(tmp_path: Path, hashed: list[str]) -> None:
    raw, kept = tmp_path / "raw", FileHashCache(tmp_path / "kept.json")
    raw.mkdir()
    for name in "abc":
        (raw / f"{name}.txt").write_text(name)
    before = read_corpus_files(raw, kept)
    assert sorted(hashed) == ["a.txt", "b.txt", "c.txt"]
    hashed.clear()
    assert read_corpus_files(raw, kept) == before
    assert hashed == []
    said = (raw / "b.txt").stat()
    (raw / "b.txt").write_text("B")  # as large as before
    os.utime(raw / "b.txt", ns=(said.st_atime_ns, said.st_mtime_ns))  # and pretending to be as old
    (raw / "c.txt").unlink()
    (raw / "d.txt").write_text("d")
    assert read_corpus_files(raw, kept) == read_corpus_files(raw)
    hashed.clear()
    assert read_corpus_files(raw, kept) == read_corpus_files(raw)
    assert sorted(hashed) == ["a.txt", "b.txt", "d.txt"]  # by the second of the two, which keeps nothing
    assert {Path(path).name for path in kept.read()} == {"a.txt", "b.txt", "d.txt"}


def test_a_file_whose_name_is_not_utf8_is_known_too(tmp_path: Path, hashed: list[str]) -> None:
    raw, kept = tmp_path / "raw", FileHashCache(tmp_path / "kept.json")
    raw.mkdir()
    Path(os.fsdecode(os.fsencode(raw) + b"/caf\xe9.txt")).write_text("a")
    before = read_corpus_files(raw, kept)
    hashed.clear()
    assert read_corpus_files(raw, kept) == before
    assert hashed == []


def test_whatever_the_file_system_says_comes_back(tmp_path: Path) -> None:
    kept = FileHashCache(tmp_path / "kept.json")
    known = {
        "a": HashedFile(FileIdentity(1, -5, 2**64 - 1, 2**63 + 5), b"\x00\xff"),
        "\udce9": HashedFile(FileIdentity(0, 0, 0), b""),
    }
    kept.write(known)
    assert kept.read() == known


def test_what_is_known_of_another_folder_stays(tmp_path: Path, hashed: list[str]) -> None:
    kept = FileHashCache(tmp_path / "kept.json")
    for name in ("raw", "raw more"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
        read_corpus_files(tmp_path / name, kept)
    hashed.clear()
    read_corpus_files(tmp_path / "raw", kept)
    read_corpus_files(tmp_path / "raw more", kept)
    assert hashed == []


def test_a_file_written_just_now_is_read_again(tmp_path: Path) -> None:
    raw, kept = tmp_path / "raw", FileHashCache(tmp_path / "kept.json")
    raw.mkdir()
    (raw / "a.txt").write_text("a")
    read_corpus_files(raw, kept)
    assert kept.read() == {}


@pytest.mark.parametrize("damage", [b"", b"nothing of ours", b"0\n[]", None])
def test_known_hashes_that_are_damaged_or_gone_cost_reading_and_nothing_else(
    tmp_path: Path, hashed: list[str], damage: bytes | None
) -> None:
    raw, kept = tmp_path / "raw", FileHashCache(tmp_path / "kept.json")
    raw.mkdir()
    (raw / "a.txt").write_text("a")
    before = read_corpus_files(raw, kept)
    hashed.clear()
    kept.store.unlink() if damage is None else kept.store.write_bytes(damage)
    assert read_corpus_files(raw, kept) == before
    assert hashed == ["a.txt"]
    assert len(kept.read()) == 1


def lines(first: int, last: int) -> str:
    return "\n".join(json.dumps({"text": f"document {n} " + "word " * 400}) for n in range(first, last))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jsonl").write_text(lines(100 * number, 100 * number + 130))  # 30 stand in the next one too
    return folder


def places(results: ShardCache) -> dict[str, int]:
    return {place.name: place.stat().st_ino for place in results.path.iterdir() if place.name[0] != "."}


def test_a_changed_file_costs_its_own_shard_and_comes_out_as_if_all_were_read(raw: Path, tmp_path: Path) -> None:
    results = ShardCache(tmp_path / "results")
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
    results = ShardCache(tmp_path / "results")
    write_cleaned_corpus(raw, tmp_path / "cleaned", results=results)
    before = places(results)
    write_cleaned_corpus(raw, tmp_path / "cleaned", CleaningSettings(heldout_fraction=0.2), results=results)
    assert not places(results).keys() & before.keys()


def lose_heldout(results: ShardCache) -> None:
    """What a kill in the middle of a deletion would leave, if results were deleted in place."""
    for part in results.path.glob("*/heldout/*.parquet"):
        part.unlink()


def shorten_a_part(results: ShardCache) -> None:
    """What a tool that writes a cleaned part in place does to the result that it is a link to."""
    part = next(results.path.glob("*/train/*.parquet"))
    pq.write_table(pq.read_table(part).slice(0, 3), part)


@pytest.mark.parametrize("damage", [lose_heldout, shorten_a_part])
def test_results_that_are_not_as_they_were_made_are_made_again(
    raw: Path, tmp_path: Path, damage: Callable[[ShardCache], None]
) -> None:
    results = ShardCache(tmp_path / "results")
    counts = write_cleaned_corpus(raw, tmp_path / "cleaned", results=results)
    damage(results)
    assert write_cleaned_corpus(raw, tmp_path / "cleaned", results=results) == counts
    assert CleanedCorpus(tmp_path / "cleaned").count("train") == counts.train_documents


def test_a_file_that_changes_while_it_is_read_is_told_and_stands_for_nothing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = cleaned.read_documents
    content = (raw / "2.jsonl").read_bytes()

    def read_what_comes_between(path: Path, *arguments: Any, **options: Any) -> Iterator[Document]:
        if path.name == "2.jsonl":
            path.write_bytes(content[: len(content) // 2].rpartition(b"\n")[0])
        return read(path, *arguments, **options)

    results = ShardCache(tmp_path / "results")
    with monkeypatch.context() as patch:
        patch.setattr(cleaned, "read_documents", read_what_comes_between)
        with pytest.raises(InputError, match=r"2\.jsonl: the file changed while it was read.*Run again"):
            write_cleaned_corpus(raw, tmp_path / "cleaned", results=results)
    (raw / "2.jsonl").write_bytes(content)
    counts = write_cleaned_corpus(raw, tmp_path / "cleaned", results=results)
    assert counts == write_cleaned_corpus(raw, tmp_path / "whole")


def test_a_part_without_duplicates_is_written_in_groups_as_it_was(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaned, "_ROW_GROUP_BYTES", 40_000)
    write_cleaned_corpus(raw, tmp_path / "cleaned")
    for part in CleanedCorpus(tmp_path / "cleaned").parts("train")[1:]:
        with pq.ParquetFile(part) as file:
            assert file.num_row_groups > 3


def test_a_corpus_on_a_file_system_without_hard_links_is_copied(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another file system")

    expected = write_cleaned_corpus(raw, tmp_path / "linked")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    results = ShardCache(tmp_path / "results")
    assert write_cleaned_corpus(raw, tmp_path / "copied", results=results) == expected
    found = CleanedCorpus(tmp_path / "copied")
    assert found.digest() == CleanedCorpus(tmp_path / "linked").digest()
    assert {part.stat().st_nlink for part in found.parts("train")} == {1}


def test_more_parts_than_five_digits_count_come_in_order(raw: Path, tmp_path: Path) -> None:
    write_cleaned_corpus(raw, tmp_path / "cleaned")
    first, *_, last = CleanedCorpus(tmp_path / "cleaned").parts("train")
    last = last.rename(last.with_name("part-100000.parquet"))
    assert CleanedCorpus(tmp_path / "cleaned").parts("train")[0] == first
    assert CleanedCorpus(tmp_path / "cleaned").parts("train")[-1] == last


# of the files of `raw`: if it changes, raise `cleaned.CLEANING`, or what is kept of shards would be taken for the new
DIGEST = "95d41a37999d4834e9f9d3c942887355"


def test_what_cleaning_gives_is_what_it_gave(raw: Path, tmp_path: Path) -> None:
    (raw / "odd.txt").write_bytes("\ufeffe\u0301\x00 caf\r\n\r\n  \u1112\u1161\u11ab ".encode())
    write_cleaned_corpus(raw, tmp_path / "cleaned")
    assert (cleaned.CLEANING[0], CleanedCorpus(tmp_path / "cleaned").digest()) == (2, DIGEST)
