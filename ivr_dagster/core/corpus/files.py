"""Which files of a folder belong to a corpus, and the hashes of their content."""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ivr_dagster.errors import InputError, combine_errors
from ivr_dagster.storage.content_hash import new_digest
from ivr_dagster.storage.file_hashes import FileHashCache, HashedFile
from ivr_dagster.storage.file_identity import FileIdentity
from ivr_dagster.storage.regular_files import kind_of, open_regular

SUFFIXES = (".txt", ".jsonl", ".json")
# Nanoseconds. The coarsest timestamps of a common file system (FAT) have a resolution of two seconds.
TIMESTAMP_RESOLUTION_NS = 2_000_000_000

_BLOCK_BYTES = 1 << 20
# Files per thread task: with many small files, task switches would dominate.
_FILES_PER_TASK = 64


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A corpus file with its content hash.

    Attributes:
        path: the file.
        name: path relative to the corpus folder, with "/" between folders.
        size: bytes.
        content: BLAKE2b digest of the bytes.
    """

    path: Path
    name: str
    size: int
    content: bytes


def corpus_files(root: Path) -> list[Path]:
    """Corpus files below `root` at any depth, sorted by relative path: .txt, .jsonl and .json, each also as .gz.

    Hidden files and folders, and names ending in .tmp (partially written), are ignored. A folder that several links
    point to is read once.

    Raises:
        InputError: no corpus file; an unreadable folder; a link that is broken or leaves `root`; a pipe, device or
            socket with the name of a corpus file. All errors are reported together.
    """
    files = [path for path in _visible_files(root) if file_format(path.name)]
    if not files:
        raise InputError(
            "the folder contains no corpus file at any depth",
            where=root,
            remedy=f"Add files ending in {', '.join(SUFFIXES)} (each also with .gz), "
            "or choose another folder with --raw-corpora-dir",
        )
    return sorted(files, key=lambda path: relative_name(path, root))


def ignored_files(root: Path) -> list[Path]:
    """Visible files below `root` that are not corpus files, unordered. Raises the same errors as `corpus_files`."""
    return [path for path in _visible_files(root) if not file_format(path.name)]


def file_format(name: str) -> str | None:
    """The suffix in `SUFFIXES` that determines how a file with this name is read, if any."""
    stem = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if stem.endswith(suffix)), None)


def relative_name(path: Path, root: Path) -> str:
    """Path relative to `root` with "/" between folders."""
    return path.relative_to(root).as_posix()


def unreadable_error(path: Path, error: OSError) -> InputError:
    """The error for a file or folder that the system cannot read."""
    return InputError(
        f"cannot be read ({error.strerror or error})",
        where=path,
        remedy="Choose an existing, readable folder with --raw-corpora-dir",
    )


def _visible_files(root: Path) -> list[Path]:
    real_root = os.path.realpath(root)
    found: list[Path] = []
    errors: list[InputError] = []
    # Folders that link to each other have far more paths than there are folders.
    visited: set[tuple[int, int]] = set()
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            errors.append(unreadable_error(folder, error))
            continue
        subfolders = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith(".tmp"):
                continue
            path = folder / entry.name
            try:
                kind = _entry_kind(entry, path, real_root)
            except OSError as error:
                errors.append(unreadable_error(path, error))
            except InputError as error:
                errors.append(error)
            else:
                if kind == "folder":
                    subfolders.append(path)
                elif kind == "file":
                    found.append(path)
        pending += reversed(subfolders)
    if errors:
        raise combine_errors(errors)
    return found


def _entry_kind(entry: os.DirEntry[str], path: Path, real_root: str) -> Literal["folder", "file"] | None:
    """Kind of a folder entry; None for pipes, devices and sockets that do not have the name of a corpus file."""
    # For all but links, the folder listing has the answer: no system call per file.
    target: os.DirEntry[str] | Path = path if entry.is_symlink() else entry
    if target is path and (path.is_dir() or file_format(entry.name)):
        _check_link(path, real_root)
    if target.is_dir():
        return "folder"
    if target.is_file():
        return "file"
    if file_format(entry.name):
        raise InputError(
            f"it is {kind_of(path.stat().st_mode)}, not a file", where=path, remedy="Remove, rename or replace it"
        )
    return None


def _check_link(path: Path, real_root: str) -> None:
    target = os.path.realpath(path)
    if not Path(target).is_relative_to(real_root):
        raise InputError(
            f"the link leaves the corpus folder and points to {target}",
            where=path,
            remedy="Copy the target into the folder, or remove the link",
        )
    if not path.exists():
        raise InputError(f"the link is broken ({target} does not exist)", where=path, remedy="Fix or remove the link")


def hash_content(path: Path) -> bytes:
    """BLAKE2b digest of a file's bytes.

    Raises:
        InputError: the file cannot be read.
    """
    digest = hashlib.blake2b()
    try:
        with open_regular(path) as file:
            while block := file.read(_BLOCK_BYTES):  # hashlib.file_digest would allocate a buffer per small file
                digest.update(block)
    except OSError as error:
        raise unreadable_error(path, error) from error
    return digest.digest()


def read_corpus_files(root: Path, cache: FileHashCache | None = None) -> list[CorpusFile]:
    """The corpus files below `root` with their content hashes, sorted by name.

    Args:
        root: the corpus folder.
        cache: known hashes; files that have not changed are not read again.

    Raises:
        InputError: see `corpus_files`; or a file cannot be read.
    """
    known = cache.read() if cache else {}

    def hash_file(path: Path) -> tuple[CorpusFile, HashedFile]:
        try:
            identity = FileIdentity.of(path, strict=True)
        except OSError as error:
            message = f"the file disappeared while the corpus was read ({error.strerror})"
            raise InputError(message, where=path, remedy="Run again when the corpus no longer changes") from error
        before = known.get(str(path))
        content = before.content if before and before.identity == identity else hash_content(path)
        return CorpusFile(path, relative_name(path, root), identity.bytes, content), HashedFile(identity, content)

    def hash_files(paths: Sequence[Path]) -> list[tuple[CorpusFile, HashedFile]]:
        return [hash_file(path) for path in paths]

    started = time.time_ns()
    paths = corpus_files(root)
    batches = [paths[first : first + _FILES_PER_TASK] for first in range(0, len(paths), _FILES_PER_TASK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
        hashed = [each for batch in pool.map(hash_files, batches) for each in batch]
    if cache:
        # A file changed within the timestamp resolution could change again without a new timestamp.
        settled = {
            str(file.path): each for file, each in hashed if each.identity.changed < started - TIMESTAMP_RESOLUTION_NS
        }
        others = {path: each for path, each in known.items() if not path.startswith(f"{root}{os.sep}")}
        if {**others, **settled} != known:
            cache.write({**others, **settled})
    return [file for file, _ in hashed]


def fingerprint_corpus(root: Path, cache: FileHashCache | None = None) -> str:
    """Hash of the corpus files' names and contents, 32 hexadecimal digits. Timestamps do not matter.

    Raises:
        InputError: see `read_corpus_files`.
    """
    digest = new_digest()
    for file in read_corpus_files(root, cache):
        # Unambiguous: no path contains NUL and content digests have a fixed length.
        digest.update(os.fsencode(file.name) + b"\0" + file.content)
    return digest.hexdigest()
