"""Results are made if they are missing, and complete or absent."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from ivr_dagster.errors import InputError
from ivr_dagster.storage import shard_cache
from ivr_dagster.storage.shard_cache import ShardCache, result_key


def make(task: str, target: Path) -> None:
    (target / "content").write_text(task)
    if task == "bad":
        raise ValueError(task)


@pytest.fixture
def results(tmp_path: Path) -> ShardCache:
    (tmp_path / "results").mkdir()
    return ShardCache(tmp_path / "results")


def content(results: ShardCache) -> dict[str, str]:
    return {place.name: (place / "content").read_text() for place in results.path.iterdir() if place.name[0] != "."}


def test_only_missing_results_are_made(results: ShardCache) -> None:
    results.complete(make, {"a": "one", "b": "two", "x": "five"})
    told: list[str] = []
    results.complete(make, {"c": "three", "x": "other", "d": "four", "a": "other"}, on_result=told.append)
    assert content(results) == {"a": "one", "b": "two", "c": "three", "d": "four", "x": "five"}
    assert told == ["x", "a", "c", "d"]


@pytest.mark.parametrize("damage", [lambda file: file.write_text("kept"), lambda file: file.unlink()])
def test_modified_result_is_made_again(results: ShardCache, damage: Callable[[Path], object]) -> None:
    results.complete(make, {"a": "one", "b": "two"})
    damage(results.result_folder("a") / "content")
    assert not results.has_result("a")
    results.complete(make, {"a": "again", "b": "again"})
    assert content(results) == {"a": "again", "b": "two"}


def test_first_of_two_writers_wins(results: ShardCache) -> None:
    def make_while_another_does(task: str, target: Path) -> None:
        if task == "second":
            results.complete(make, {"a": "first"})
        make(task, target)

    results.complete(make_while_another_does, {"a": "second"})
    assert content(results) == {"a": "first"}
    assert list(results.path.iterdir()) == [results.result_folder("a")]


def write_elsewhere(function: object, items: Sequence[object]) -> Iterator[None]:
    return iter([None] * len(items))


def test_result_that_does_not_appear_is_reported(results: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "TIMEOUT_SECONDS", 0.1)
    with pytest.raises(InputError, match=r"results/a: a worker wrote.*storage that all nodes share"):
        results.complete(make, {"a": "one"}, run=write_elsewhere)


def test_nothing_runs_if_nothing_is_missing(results: ShardCache) -> None:
    results.complete(make, {"a": "one"})

    def run(*_: object) -> Iterator[None]:
        raise AssertionError("nothing is to be done")

    results.complete(make, {"a": "one"}, run=run)


def test_cache_in_use_is_refused(results: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "TIMEOUT_SECONDS", 0.1)
    refused = pytest.raises(InputError, match=r"results: this shard cache is in use by .*Wait")
    with FileLock(results.path / ".lock"), refused, results.locked():
        pass
    with results.locked():
        pass


def test_results_before_an_error_are_kept(results: ShardCache) -> None:
    with pytest.raises(ValueError, match="bad"):
        results.complete(make, {"a": "one", "b": "bad", "c": "three"})
    assert list(results.path.iterdir()) == [results.result_folder("a")]


def test_leftovers_of_killed_writers_are_removed(results: ShardCache) -> None:
    leftover = results.path / f".a.{os.getpid()}-abcd.tmp"  # on another machine the process may be anybody's
    leftover.mkdir()
    with results.locked():
        assert not leftover.exists()


def test_keep_only_deletes_other_results(results: ShardCache) -> None:
    results.complete(make, {"a": "one", "b": "two"})
    results.keep_only({"b", "c"})
    assert content(results) == {"b": "two"}


def test_different_ingredients_have_different_keys() -> None:
    keys = [result_key(1, ["a", "b"]), result_key(1, ["a"], "b"), result_key("1", ["a", "b"]), result_key(1, ["ab"])]
    assert len(set(keys)) == 4
    assert keys[0] == result_key(1, ("a", "b"))
    assert result_key("caf\udce9")  # a file name that is not UTF-8
