"""Files and folders that are complete or absent.

What belongs here: writing under a temporary name on the same file system, flushing, renaming; and what a reader does
about a writer that was killed between two renames.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGED_SUFFIX = ".tmp"
OLD_SUFFIX = ".old"


def staging_path(path: Path) -> Path:
    """A fresh hidden name beside `path`; nothing is created but the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{STAGED_SUFFIX}"


def publish(staged: Path, path: Path) -> None:
    """Put `staged`, a file or a folder, in the place of `path`, whole.

    The files are flushed first. An old folder is kept aside until the new one stands; killed in between, a reader's
    :func:`recover` puts it back.
    """
    _flush(staged)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = _old_path(path)
    if path.is_dir():
        remove(old)
        path.replace(old)
    staged.replace(path)
    if path.is_dir():  # kept aside now, or by a writer that was killed before its new one stood
        remove(old)
    _flush_folder(path.parent)


def publish_first(staged: Path, path: Path) -> None:
    """Put `staged`, a folder that is not empty, in the place of `path`, whole, unless a folder stands there already.

    For folders of which two with the same name are alike: whoever comes second leaves the first as it is.
    """
    _flush(staged)
    try:
        staged.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    _flush_folder(path.parent)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name to write a file or folder under; it takes the place of `path` when the block ends well."""
    staged = staging_path(path)
    try:
        yield staged
        publish(staged, path)
    finally:
        remove(staged)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Have `target` be the same file as `source`, or a copy of it where the file system knows no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def recover(path: Path) -> None:
    """Put back the old folder of a writer that was killed between the two renames of :func:`publish`."""
    old = _old_path(path)
    if old.exists():
        if path.exists():
            remove(old)
        else:
            old.replace(path)


def sweep(folder: Path) -> int:
    """Delete what killed writers left under temporary names directly in `folder`; returns how many.

    A temporary name carries its writer's process number; those of living processes are left alone.
    """
    swept = 0
    for leftover in folder.glob(f".*{STAGED_SUFFIX}"):
        writer = leftover.name.removesuffix(STAGED_SUFFIX).rpartition(".")[2].partition("-")[0]
        if writer.isdigit() and not Path(f"/proc/{writer}").exists() and Path("/proc").exists():
            remove(leftover)
            swept += 1
    return swept


def _old_path(path: Path) -> Path:
    return path.parent / f".{path.name}{OLD_SUFFIX}"


def _flush(staged: Path) -> None:
    files = [p for p in staged.rglob("*") if p.is_file()] if staged.is_dir() else [staged]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
