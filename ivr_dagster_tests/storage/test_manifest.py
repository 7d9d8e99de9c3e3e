"""Damage is found by comparing files with their manifest."""

import os
import shutil
from pathlib import Path

import pytest

from ivr_dagster.storage.manifest import (
    MANIFEST,
    Manifest,
    describe_files,
    find_damage,
    read_manifest,
    visible_files,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "artifact"
    (place / "sub").mkdir(parents=True)
    (place / "a.txt").write_text("first")
    (place / "sub" / "part-0.parquet").write_bytes(b"rows")
    files = describe_files(place, visible_files(place))
    write_manifest(Manifest("x", "run", {"made_by": "me"}, files), place, folder=True)
    return place


def same_time(file: Path, content: bytes) -> None:
    """Change the bytes and restore the modification time, as a failing disk does."""
    found = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_manifest_is_read_back_and_matches(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.asset, manifest.run_id, manifest.made_of) == ("x", "run", {"made_by": "me"})
    assert set(manifest.files) == {"a.txt", "sub/part-0.parquet"}
    assert find_damage(folder) == find_damage(folder, read_all=True) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("a.txt", b"firs", "has 4 bytes, 5 were written"), ("sub/part-0.parquet", b"rowz", "holds other bytes")],
)
def test_changed_size_or_bytes_are_damage(folder: Path, name: str, content: bytes, says: str) -> None:
    (folder / name).write_bytes(content)
    (fault,) = find_damage(folder)
    assert fault.startswith(str(folder / name))
    assert says in fault


def test_change_with_restored_time_is_found_by_reading_all(folder: Path) -> None:
    same_time(folder / "a.txt", b"fXrst")
    assert find_damage(folder) == []
    assert "holds other bytes" in find_damage(folder, read_all=True)[0]


def test_missing_and_unknown_data_files_are_damage(folder: Path) -> None:
    (folder / "a.txt").unlink()
    (folder / "part-1.parquet").write_bytes(b"more")
    (folder / "notes.md").write_text("mine")
    assert find_damage(folder) == [
        f"{folder / 'a.txt'} is missing",
        f"{folder / 'part-1.parquet'} was not written with the others",
    ]


def test_copy_matches_its_manifest(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    assert find_damage(copy) == find_damage(copy, read_all=True) == []


def test_previous_content_of_a_file_matches_too(tmp_path: Path) -> None:
    place = tmp_path / "table.csv"
    place.write_text("old")
    before = describe_files(tmp_path, [place])
    staged = tmp_path / "staged"
    staged.write_text("new!")
    files = {"table.csv": describe_files(tmp_path, [staged])["staged"]}
    write_manifest(Manifest("x", "run", files=files, before=before), place, folder=False)
    assert find_damage(place, read_all=True) == []  # killed before the rename
    staged.replace(place)
    assert find_damage(place, read_all=True) == []
    place.write_text("else")
    assert len(find_damage(place)) == 1


def test_change_of_an_editable_artifact_is_no_damage(tmp_path: Path) -> None:
    place = tmp_path / "rules.yaml"
    place.write_text("computed")
    files = describe_files(tmp_path, [place])
    for editable, faults in ((True, 0), (False, 1)):
        place.write_text("computed")
        write_manifest(Manifest("x", "run", files=files, editable=editable), place, folder=False)
        place.write_text("edited by hand")
        assert len(find_damage(place, read_all=True)) == faults


def test_missing_or_malformed_manifest_is_ignored(folder: Path) -> None:
    for text in ("", "{", "[]", '{"asset": "x"}', '{"asset": "x", "run_id": "r", "files": {"a.txt": 3}}'):
        (folder / MANIFEST).write_text(text)
        assert read_manifest(folder) is None
        assert find_damage(folder) == []
    (folder / MANIFEST).write_text('{"asset": "x", "run_id": "r"}')  # what earlier versions wrote
    assert read_manifest(folder) == Manifest("x", "r")
    assert find_damage(folder) == []


def test_hard_linked_file_is_not_read_again(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    other = tmp_path / "other"
    other.mkdir()
    (other / "part-7.parquet").hardlink_to(folder / "sub" / "part-0.parquet")
    same_time(other / "part-7.parquet", b"rowz")  # so that a reading would tell
    known = manifest.files["sub/part-0.parquet"]
    assert describe_files(other, visible_files(other), manifest.files) == {"part-7.parquet": known}
    assert describe_files(other, visible_files(other))["part-7.parquet"].blake2b != known.blake2b
