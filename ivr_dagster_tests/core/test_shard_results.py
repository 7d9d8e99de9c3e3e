"""Results by key: made where they are missing, complete or absent."""

from pathlib import Path

import pytest

from ivr_dagster.core.shard_results import ShardResults, result_key


def make(task: str, target: Path) -> None:
    (target / "content").write_text(task)
    if task == "bad":
        raise ValueError(task)


def content(results: ShardResults) -> dict[str, str]:
    return {place.name: (place / "content").read_text() for place in results.path.iterdir()}


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    results = ShardResults(tmp_path / "results")
    results.complete(make, {"a": "one", "b": "two"})
    (results.place("a") / "content").write_text("kept")
    told: list[str] = []
    results.complete(make, {"c": "three", "a": "one"}, on_result=told.append)
    assert content(results) == {"a": "kept", "b": "two", "c": "three"}
    assert told == ["a", "c"]


def test_what_was_done_before_a_fault_stays_and_the_fault_leaves_nothing(tmp_path: Path) -> None:
    results = ShardResults(tmp_path)
    with pytest.raises(ValueError, match="bad"):
        results.complete(make, {"a": "one", "b": "bad", "c": "three"})
    assert content(results) == {"a": "one"}


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    leftover = tmp_path / ".a.999999999-abcd.tmp"
    leftover.mkdir()
    ShardResults(tmp_path).complete(make, {})
    assert not leftover.exists()


def test_what_is_of_no_use_any_more_is_forgotten(tmp_path: Path) -> None:
    results = ShardResults(tmp_path)
    results.complete(make, {"a": "one", "b": "two"})
    results.keep_only({"b", "c"})
    assert content(results) == {"b": "two"}


def test_a_key_tells_its_ingredients_apart() -> None:
    keys = [result_key(1, ["a", "b"]), result_key(1, ["a"], "b"), result_key("1", ["a", "b"]), result_key(1, ["ab"])]
    assert len(set(keys)) == 4
    assert keys[0] == result_key(1, ("a", "b"))
    assert result_key("caf\udce9")  # a file name that is not UTF-8
