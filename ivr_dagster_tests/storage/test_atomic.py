"""Blocks that raise, processes that are killed, and what they leave behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ivr_dagster.storage import atomic
from ivr_dagster.storage.atomic import atomic_write, publish, recover, remove, remove_leftovers, staging_path


def folder_of(path: Path, content: str, files: int = 3) -> Path:
    path.mkdir()
    for n in range(files):
        (path / f"{n}.txt").write_text(content)
    return path


def contents(path: Path) -> dict[str, str]:
    if path.is_file():
        return {path.name: path.read_text()}
    return {file.relative_to(path).as_posix(): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("is_folder", [False, True])
def test_old_content_stays_if_the_block_raises(tmp_path: Path, is_folder: bool, error: type[BaseException]) -> None:
    place = tmp_path / "artifact"
    folder_of(place, "old") if is_folder else place.write_text("old")
    before = contents(place)
    with pytest.raises(error), atomic_write(place) as staged:
        folder_of(staged, "new", files=1) if is_folder else staged.write_text("half of the n")
        raise error
    assert contents(place) == before
    assert names(tmp_path) == ["artifact"]


def test_file_is_replaced_and_missing_folders_are_created(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "report.md"
    for text in ("first", "second"):
        with atomic_write(place) as staged:
            staged.write_text(text)
            assert not place.exists() or place.read_text() == "first"
        assert place.read_text() == text
    assert names(place.parent) == ["report.md"]


def test_folder_is_replaced_completely(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "model", "old", files=5)
    with atomic_write(place) as staged:
        folder_of(staged, "new", files=2)
        (staged / "sub").mkdir()
        (staged / "sub" / "deep.txt").write_text("new")
    assert contents(place) == {"0.txt": "new", "1.txt": "new", "sub/deep.txt": "new"}
    assert names(tmp_path) == ["model"]


def test_link_to_a_folder_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    target = folder_of(tmp_path / "big disk", "theirs")
    place = tmp_path / "model"
    place.symlink_to(target)
    with atomic_write(place) as staged:
        folder_of(staged, "new", files=1)
    assert contents(place) == {"0.txt": "new"}
    assert contents(target) == dict.fromkeys(("0.txt", "1.txt", "2.txt"), "theirs")
    assert names(tmp_path) == ["big disk", "model"]


def test_temporary_names_are_hidden_and_unique(tmp_path: Path) -> None:
    place = tmp_path / "new folder" / "model"
    found = {staging_path(place) for _ in range(100)}
    assert len(found) == 100
    assert {path.parent for path in found} == {place.parent}
    assert all(path.name.startswith(f".model.{os.getpid()}-") for path in found)
    assert names(place.parent) == []


PUBLISHING = """
import os, pathlib, signal, sys
from pathlib import Path
from ivr_dagster.storage.atomic import publish, staging_path
place, killed_before = Path(sys.argv[1]), int(sys.argv[2])
renames, replace = 0, Path.replace

def counting(self, target):
    global renames
    if renames == killed_before:
        os.kill(os.getpid(), signal.SIGKILL)
    renames += 1
    return replace(self, target)

Path.replace = counting
staged = staging_path(place)
staged.mkdir()
for n in range(3):
    (staged / f"{n}.txt").write_text("new")
publish(staged, place)
print(renames)
"""


def publish_and_kill(place: Path, before: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PUBLISHING, str(place), str(before)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("killed_before", "left"), [(0, "old"), (1, "old"), (2, "new")])
def test_writer_killed_before_a_rename_leaves_a_complete_folder(tmp_path: Path, killed_before: int, left: str) -> None:
    place = folder_of(tmp_path / "model", "old")
    run = publish_and_kill(place, killed_before)
    if killed_before < 2:
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.stdout.strip() == "2"  # there is no third rename to be killed before
    assert place.exists() == (killed_before != 1)
    recover(place)
    assert contents(place) == dict.fromkeys(("0.txt", "1.txt", "2.txt"), left)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["model"]


def test_writer_killed_before_deleting_the_old_folder_leaves_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, staged = folder_of(tmp_path / "model", "old"), folder_of(tmp_path / "staged", "new")

    class Killed(BaseException):
        pass

    def kill_where_something_is(path: Path) -> None:
        if path.exists():
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(atomic, "remove", kill_where_something_is)
        publish(staged, place)
    assert names(tmp_path) == [".model.old", "model"]
    recover(place)
    assert contents(place) == dict.fromkeys(("0.txt", "1.txt", "2.txt"), "new")
    assert names(tmp_path) == ["model"]


def test_next_writer_publishes_after_a_kill(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "model", "old")
    publish_and_kill(place, before=1)
    with atomic_write(place) as staged:
        folder_of(staged, "newer", files=1)
    assert ".model.old" not in names(tmp_path)
    recover(place)
    remove_leftovers(tmp_path)
    assert contents(place) == {"0.txt": "newer"}
    assert names(tmp_path) == ["model"]


WRITING = """
import sys
from pathlib import Path
from ivr_dagster.storage.atomic import atomic_write
place = Path(sys.argv[1])
for version in range(1, 1_000_000):
    with atomic_write(place) as staged:
        staged.mkdir()
        for n in range(5):
            (staged / f"{n}.txt").write_text(str(version))
    print(version, flush=True)
"""


@pytest.mark.parametrize("kill_after", [1, 5, 12])
def test_writer_killed_at_any_time_leaves_one_complete_version(tmp_path: Path, kill_after: int) -> None:
    place = tmp_path / "model"
    with subprocess.Popen([sys.executable, "-c", WRITING, str(place)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(kill_after):
            told = int(writer.stdout.readline())
        writer.kill()
        writer.wait()
        told = max([told, *map(int, writer.stdout.read().split())])
    recover(place)
    assert len(contents(place)) == 5
    (version,) = set(contents(place).values())
    assert int(version) in (told, told + 1)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["model"]


def test_recover_changes_nothing_without_an_interruption(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "model", "old")
    recover(place)
    recover(tmp_path / "other")
    assert names(tmp_path) == ["model"]


def test_remove_leftovers_keeps_files_of_living_processes_and_others(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as finished:
        pass
    dead = f".model.{finished.pid}-0a1b2c3d.tmp"
    (tmp_path / dead.replace("model", "report.md")).write_text("half")
    folder_of(tmp_path / dead, "half")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / dead).write_text("half")
    living = staging_path(tmp_path / "model")
    living.write_text("half")
    kept = {".model.old", "notes.tmp", ".notes.tmp", ".x.12ab-0a1b2c3d.tmp", living.name, "below"}
    for name in kept - {living.name, "below"}:
        (tmp_path / name).write_text("kept")
    assert remove_leftovers(tmp_path) == 2
    assert set(names(tmp_path)) == kept
    assert names(tmp_path / "below") == [dead]
    assert remove_leftovers(tmp_path / "not there") == 0


def test_remove_deletes_files_folders_and_links_but_no_link_target(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", "x")
    link = tmp_path / "link"
    link.symlink_to(folder)
    for path in (link, tmp_path / "nothing"):
        remove(path)
    assert len(contents(folder)) == 3
    remove(folder / "0.txt")
    assert names(folder) == ["1.txt", "2.txt"]
    remove(folder)
    assert names(tmp_path) == []
