"""Files and folders that are complete or absent, even if their writer is killed.

Content is written under a temporary name on the same file system, flushed and renamed.
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
    """A new hidden name beside `path`. Only the parent folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{STAGED_SUFFIX}"


def publish(staged: Path, path: Path) -> None:
    """Flush `staged`, a file or a folder, and rename it to `path`.

    An old folder is renamed first and deleted last. If the writer is killed in between, :func:`recover` restores it.
    """
    _flush(staged)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = _old_path(path)
    if path.is_dir():
        remove(old)
        path.replace(old)
    staged.replace(path)
    if path.is_dir():  # `old` may also come from an earlier writer that was killed
        remove(old)
    _flush_one(path.parent)


def publish_first(staged: Path, path: Path) -> None:
    """Flush the non-empty folder `staged` and rename it to `path`, unless that folder exists.

    For folders whose content is determined by their name: the second writer keeps the first one's result.
    """
    _flush(staged)
    try:
        staged.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    _flush_one(path.parent)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name to write a file or folder under; it is renamed to `path` if the block succeeds."""
    staged = staging_path(path)
    try:
        yield staged
        publish(staged, path)
    finally:
        remove(staged)


def remove(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Hard-link `target` to `source`, or copy it if the file system has no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def recover(path: Path) -> None:
    """Restore the old folder if its writer was killed between the two renames of :func:`publish`."""
    old = _old_path(path)
    if path.exists():
        remove(old)
    elif old.exists():
        old.replace(path)


def remove_leftovers(folder: Path) -> int:
    """Delete the temporary files and folders of dead processes directly in `folder`; returns how many.

    A temporary name contains the number of its writer's process.
    """
    removed = 0
    for leftover in folder.glob(f".*{STAGED_SUFFIX}"):
        writer = leftover.name.removesuffix(STAGED_SUFFIX).rpartition(".")[2].partition("-")[0]
        if writer.isdigit() and not Path(f"/proc/{writer}").exists() and Path("/proc").exists():
            remove(leftover)
            removed += 1
    return removed


def _old_path(path: Path) -> Path:
    return path.parent / f".{path.name}{OLD_SUFFIX}"


def _flush(staged: Path) -> None:
    for file in (each for each in staged.rglob("*") if each.is_file()) if staged.is_dir() else [staged]:
        _flush_one(file)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
