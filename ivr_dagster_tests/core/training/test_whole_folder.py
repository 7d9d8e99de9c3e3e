from pathlib import Path

import pytest

from ivr_dagster.core.training.whole_folder import whole_folder


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "below" / "place"
    for content in ("first", "second"):
        with whole_folder(place) as folder:
            assert list(folder.iterdir()) == []
            (folder / content).touch()
        assert [path.name for path in place.iterdir()] == [content]
        assert list(place.parent.iterdir()) == [place]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with whole_folder(place) as folder:
        (folder / "old").touch()
    with pytest.raises(KeyboardInterrupt), whole_folder(place) as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["place", "place/old"]


def test_what_a_killed_run_left_is_no_part_of_the_next(tmp_path: Path) -> None:
    (tmp_path / ".place.writing").mkdir()
    (tmp_path / ".place.writing" / "half").touch()
    with whole_folder(tmp_path / "place") as folder:
        (folder / "new").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "place"]
