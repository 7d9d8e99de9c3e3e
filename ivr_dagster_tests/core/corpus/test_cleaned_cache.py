"""Cleaning with a shard cache: deduplication across shards, and what a change costs."""

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ivr_dagster.core.corpus import cleaned, parts
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.corpus.documents import Document
from ivr_dagster.errors import InputError
from ivr_dagster.settings.groups import CorpusSettings
from ivr_dagster.storage.shard_cache import ShardCache


def lines(first: int, last: int) -> str:
    return "\n".join(json.dumps({"text": f"document {n} " + "word " * 400}) for n in range(first, last))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jsonl").write_text(lines(100 * number, 100 * number + 130))  # 30 are also in the next file
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache")


def inodes(cache: ShardCache) -> dict[str, int]:
    return {place.name: place.stat().st_ino for place in cache.path.iterdir() if place.name[0] != "."}


def test_changed_file_costs_its_shard_and_gives_the_same_bytes_as_a_full_run(
    raw: Path, tmp_path: Path, cache: ShardCache
) -> None:
    write_cleaned_corpus(raw, tmp_path / "cleaned", cache=cache)
    before = inodes(cache)
    (raw / "3.jsonl").write_text(lines(300, 380))
    counts = write_cleaned_corpus(raw, tmp_path / "cleaned", cache=cache)
    after = inodes(cache)
    # its shard, and the deduplicated parts of it and of the next one
    assert 1 <= len(after.items() - before.items()) <= 3
    assert len(after) >= 8
    assert counts == write_cleaned_corpus(raw, tmp_path / "whole")
    for split in ("train", "heldout"):
        found = [part.read_bytes() for part in CleanedCorpus(tmp_path / "cleaned").parts(split)]
        assert found == [part.read_bytes() for part in CleanedCorpus(tmp_path / "whole").parts(split)]


def test_duplicates_are_found_across_shards_and_the_first_is_kept(raw: Path, tmp_path: Path) -> None:
    counts = write_cleaned_corpus(raw, tmp_path / "cleaned")
    assert counts.dropped_duplicates == 7 * 30
    assert counts.train_documents + counts.heldout_documents == 830
    numbers = [int(text.split()[1]) for text in CleanedCorpus(tmp_path / "cleaned").texts("train")]
    assert numbers == sorted(set(numbers))


def test_other_settings_do_not_share_results(raw: Path, tmp_path: Path, cache: ShardCache) -> None:
    write_cleaned_corpus(raw, tmp_path / "cleaned", cache=cache)
    before = inodes(cache)
    write_cleaned_corpus(raw, tmp_path / "cleaned", CorpusSettings(heldout_fraction=0.2), cache=cache)
    assert not inodes(cache).keys() & before.keys()


def delete_heldout_parts(cache: ShardCache) -> None:
    for part in cache.path.glob("*/heldout/*.parquet"):
        part.unlink()


def shorten_train_part(cache: ShardCache) -> None:
    """Writes to a cleaned part in place: the cached result is a hard link to it."""
    part = next(cache.path.glob("*/train/*.parquet"))
    pq.write_table(pq.read_table(part).slice(0, 3), part)


@pytest.mark.parametrize("damage", [delete_heldout_parts, shorten_train_part])
def test_damaged_results_are_computed_again(
    raw: Path, tmp_path: Path, cache: ShardCache, damage: Callable[[ShardCache], None]
) -> None:
    counts = write_cleaned_corpus(raw, tmp_path / "cleaned", cache=cache)
    damage(cache)
    assert write_cleaned_corpus(raw, tmp_path / "cleaned", cache=cache) == counts
    assert CleanedCorpus(tmp_path / "cleaned").count("train") == counts.train_documents


def test_file_that_changes_while_it_is_read_is_refused_and_not_cached(
    raw: Path, tmp_path: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_documents = cleaned.read_documents
    content = (raw / "2.jsonl").read_bytes()

    def shorten_and_read(path: Path, *arguments: Any, **options: Any) -> Iterator[Document]:
        if path.name == "2.jsonl":
            path.write_bytes(content[: len(content) // 2].rpartition(b"\n")[0])
        return read_documents(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cleaned, "read_documents", shorten_and_read)
        with pytest.raises(InputError, match=r"2\.jsonl: the file changed while it was read.*Run again"):
            write_cleaned_corpus(raw, tmp_path / "cleaned", cache=cache)
    (raw / "2.jsonl").write_bytes(content)
    counts = write_cleaned_corpus(raw, tmp_path / "cleaned", cache=cache)
    assert counts == write_cleaned_corpus(raw, tmp_path / "whole")


def test_deduplicated_part_keeps_its_row_groups(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_ROW_GROUP_BYTES", 40_000)
    write_cleaned_corpus(raw, tmp_path / "cleaned")
    for part in CleanedCorpus(tmp_path / "cleaned").parts("train")[1:]:
        with pq.ParquetFile(part) as file:
            assert file.num_row_groups > 3


def test_corpus_is_copied_if_the_file_system_has_no_hard_links(
    raw: Path, tmp_path: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another file system")

    expected = write_cleaned_corpus(raw, tmp_path / "linked")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert write_cleaned_corpus(raw, tmp_path / "copied", cache=cache) == expected
    found = CleanedCorpus(tmp_path / "copied")
    assert found.digest() == CleanedCorpus(tmp_path / "linked").digest()
    assert {part.stat().st_nlink for part in found.parts("train")} == {1}


def test_part_numbers_beyond_five_digits_are_sorted_as_numbers(raw: Path, tmp_path: Path) -> None:
    write_cleaned_corpus(raw, tmp_path / "cleaned")
    first, *_, last = CleanedCorpus(tmp_path / "cleaned").parts("train")
    last = last.rename(last.with_name("part-100000.parquet"))
    found = CleanedCorpus(tmp_path / "cleaned").parts("train")
    assert (found[0], found[-1]) == (first, last)


def test_cleaning_result_is_unchanged_for_this_version(raw: Path, tmp_path: Path) -> None:
    (raw / "odd.txt").write_bytes("\ufeffe\u0301\x00 caf\r\n\r\n  \u1112\u1161\u11ab ".encode())
    write_cleaned_corpus(raw, tmp_path / "cleaned")
    # If this digest changes, raise CLEANING_VERSION, or cached results of the old version would be used.
    digest = "95d41a37999d4834e9f9d3c942887355"
    assert (cleaned.CLEANING_VERSION[0], CleanedCorpus(tmp_path / "cleaned").digest()) == (2, digest)
