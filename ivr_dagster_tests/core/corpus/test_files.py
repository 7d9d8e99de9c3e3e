"""Which files belong to a corpus, and their hashes."""

import hashlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from ivr_dagster.core.corpus import files
from ivr_dagster.core.corpus.files import (
    CorpusFile,
    corpus_files,
    fingerprint_corpus,
    hash_content,
    ignored_files,
    read_corpus_files,
)
from ivr_dagster.errors import InputError
from ivr_dagster.storage.file_hashes import FileHashCache


def write(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_corpus_files_are_found_at_any_depth_sorted_by_relative_path(tmp_path: Path) -> None:
    names = ["a/b/c/deep.txt", "a.txt", "B.JSONL", "a/one.json.gz", "z.txt.gz", "a/two.jsonl.gz", "a-b.json"]
    for name in [*names, "readme.md", "a/x.csv.gz", ".hidden.txt", ".git/x.txt", "a/half.txt.tmp", "old.tmp/x.txt"]:
        write(tmp_path / name)
    assert [path.relative_to(tmp_path).as_posix() for path in corpus_files(tmp_path)] == sorted(names)
    assert sorted(path.name for path in ignored_files(tmp_path)) == ["readme.md", "x.csv.gz"]


def test_folder_without_corpus_files_is_refused_with_the_suffixes(tmp_path: Path) -> None:
    write(tmp_path / "notes.md")
    with pytest.raises(InputError, match=rf"{tmp_path}.*\.txt, \.jsonl, \.json.*\.gz.*--raw-corpora-dir"):
        corpus_files(tmp_path)
    with pytest.raises(InputError, match=r"nowhere: cannot be read \(No such file.*--raw-corpora-dir"):
        corpus_files(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot be read \(Not a directory"):
        corpus_files(tmp_path / "notes.md")


@pytest.mark.parametrize("name", ["file.txt", "folder"])
def test_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    outside = write(tmp_path / "outside" / "file.txt")
    write(tmp_path / "root" / "a.txt")
    (tmp_path / "root" / name).symlink_to(outside if name == "file.txt" else outside.parent)
    with pytest.raises(InputError, match=rf"root/{name}: the link leaves.*{tmp_path}/outside"):
        corpus_files(tmp_path / "root")


def test_links_inside_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / ".store" / "x.txt")
    (tmp_path / "link").symlink_to(tmp_path / ".store")
    (tmp_path / "one.txt").symlink_to(tmp_path / ".store" / "x.txt")
    (tmp_path / ".store" / "circle").symlink_to(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in corpus_files(tmp_path)] == ["link/x.txt", "one.txt"]


def test_folder_that_many_links_point_to_is_read_once(tmp_path: Path) -> None:
    for number in range(12):  # over 12! paths
        write(tmp_path / str(number) / "x.txt")
        for other in range(12):
            if other != number:
                (tmp_path / str(number) / f"to{other}").symlink_to(tmp_path / str(other))
    assert len(corpus_files(tmp_path)) == 12


def test_folders_may_be_nested_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = root / "/".join("d" * 1200)
    subprocess.run(["mkdir", "-p", folder], check=True)
    (folder / "x.txt").write_text("deep")
    try:
        assert corpus_files(root) == [folder / "x.txt"]
    finally:
        subprocess.run(["rm", "-rf", root], check=True)  # pytest's cleanup is recursive


def test_special_files_and_broken_links_are_refused_together(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "b.txt")
    os.mkfifo(tmp_path / "no corpus file")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(tmp_path / "c.jsonl"))
    (tmp_path / "d.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "e.txt").symlink_to(tmp_path / "e.txt")
    with pytest.raises(InputError) as error:
        corpus_files(tmp_path)
    assert f"{tmp_path / 'e.txt'}: the link is broken" in str(error.value)
    assert f"{tmp_path / 'b.txt'}: it is a named pipe, not a file" in str(error.value)
    assert f"{tmp_path / 'c.jsonl'}: it is a socket" in str(error.value)
    assert f"{tmp_path / 'd.txt'}: the link is broken ({tmp_path / 'gone.txt'}" in str(error.value)


def test_hashing_a_pipe_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"a\.txt: cannot be read \(it is a named pipe, not a file\)"):
        hash_content(tmp_path / "a.txt")


def test_corpus_file_has_name_size_and_content_hash(tmp_path: Path) -> None:
    write(tmp_path / "b" / "x.txt", "한국어")
    write(tmp_path / "a.txt", "one")
    assert read_corpus_files(tmp_path) == [
        CorpusFile(tmp_path / "a.txt", "a.txt", 3, hashlib.blake2b(b"one").digest()),
        CorpusFile(tmp_path / "b" / "x.txt", "b/x.txt", 9, hashlib.blake2b("한국어".encode()).digest()),
    ]


def test_fingerprint_depends_on_names_and_contents_but_not_on_times(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", "one")
    write(tmp_path / "sub" / "b.json", "[]")
    before = fingerprint_corpus(tmp_path)
    os.utime(first, (1, 1))
    write(tmp_path / "ignored.md", "x")
    assert fingerprint_corpus(tmp_path) == before
    write(first, "two")
    changed = fingerprint_corpus(tmp_path)
    write(first, "one")
    assert fingerprint_corpus(tmp_path) == before
    first.rename(tmp_path / "c.txt")
    assert len({before, changed, fingerprint_corpus(tmp_path)}) == 3


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content is hashed."""
    names: list[str] = []
    monkeypatch.setattr(files, "hash_content", lambda path: names.append(path.name) or hash_content(path))
    monkeypatch.setattr(files, "TIMESTAMP_RESOLUTION_NS", 0)
    return names


def test_unchanged_file_is_hashed_once(tmp_path: Path, hashed: list[str]) -> None:
    raw, cache = tmp_path / "raw", FileHashCache(tmp_path / "cache.json")
    for name in "abc":
        write(raw / f"{name}.txt", name)
    before = read_corpus_files(raw, cache)
    assert sorted(hashed) == ["a.txt", "b.txt", "c.txt"]
    hashed.clear()
    assert read_corpus_files(raw, cache) == before
    assert hashed == []
    status = (raw / "b.txt").stat()
    (raw / "b.txt").write_text("B")  # same size
    os.utime(raw / "b.txt", ns=(status.st_atime_ns, status.st_mtime_ns))  # and same modification time
    (raw / "c.txt").unlink()
    (raw / "d.txt").write_text("d")
    assert read_corpus_files(raw, cache) == read_corpus_files(raw)
    hashed.clear()
    read_corpus_files(raw, cache)
    assert hashed == []
    assert {Path(path).name for path in cache.read()} == {"a.txt", "b.txt", "d.txt"}


def test_hash_of_a_file_whose_name_is_not_utf8_is_cached(tmp_path: Path, hashed: list[str]) -> None:
    raw, cache = tmp_path / "raw", FileHashCache(tmp_path / "cache.json")
    raw.mkdir()
    Path(os.fsdecode(os.fsencode(raw) + b"/caf\xe9.txt")).write_text("a")
    before = read_corpus_files(raw, cache)
    hashed.clear()
    assert read_corpus_files(raw, cache) == before
    assert hashed == []
