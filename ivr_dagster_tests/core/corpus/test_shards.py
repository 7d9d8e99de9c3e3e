"""How corpus files are grouped into shards."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus.files import CorpusFile
from ivr_dagster.core.corpus.shards import MIN_SHARD_BYTES, group_into_shards

SIZES = st.lists(st.integers(0, 3 * MIN_SHARD_BYTES), min_size=1, max_size=60)


def files_of(sizes: list[int]) -> list[CorpusFile]:
    return [CorpusFile(Path(f"{n:05d}.txt"), f"{n:05d}.txt", size, b"") for n, size in enumerate(sizes)]


@given(SIZES)
def test_every_file_is_in_one_shard_in_order(sizes: list[int]) -> None:
    files = files_of(sizes)
    assert [file for shard in group_into_shards(files) for file in shard] == files
    assert all(group_into_shards(files))


@given(SIZES)
def test_large_file_ends_its_shard_and_shard_size_is_limited(sizes: list[int]) -> None:
    for shard in group_into_shards(files_of(sizes)):
        assert all(file.size < MIN_SHARD_BYTES // 2 for file in shard[:-1])
        assert sum(file.size for file in shard[:-1]) <= 4 * MIN_SHARD_BYTES


def test_small_files_are_grouped_to_about_the_target_size() -> None:
    shards = group_into_shards(files_of([1_000] * 20_000))
    assert MIN_SHARD_BYTES / 4 < 20_000_000 / len(shards) < MIN_SHARD_BYTES


def test_added_file_moves_only_the_boundaries_next_to_it() -> None:
    files = files_of([20_000] * 2_000)
    before = {tuple(file.name for file in shard) for shard in group_into_shards(files)}
    more = sorted([*files, CorpusFile(Path("00700a.txt"), "00700a.txt", 20_000, b"")], key=lambda file: file.name)
    after = {tuple(file.name for file in shard) for shard in group_into_shards(more)}
    assert len(before) > 100
    assert len(before - after) <= 2
