"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends, and goes away when it raises.

    Whoever reads `path` sees the old folder or the new one, never part of one; between the two renames there is
    for a moment none. A run that was killed leaves `.<name>.writing` behind, which the next one replaces.
    """
    writing, old = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")
    for leftover in (writing, old):
        shutil.rmtree(leftover, ignore_errors=True)
    writing.mkdir(parents=True)
    try:
        yield writing
        if path.exists():
            path.rename(old)
        writing.rename(path)
    finally:
        for leftover in (writing, old):
            shutil.rmtree(leftover, ignore_errors=True)
