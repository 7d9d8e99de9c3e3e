"""Content hashes: the data versions of artifacts. Equal content, equal version, whatever made it and when."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

BLOCK = 1 << 20
# tells people about a folder's content and is none: an evaluation writes one beside the model it has evaluated
DESCRIPTION = "README.md"


@singledispatch
def content_hash(value: object) -> str:
    """A 128-bit hash of a table, a text, tensors by name, or a folder's files but its README.md."""
    raise TypeError(f"no content hash for {type(value).__name__}")


@content_hash.register
def _(value: str) -> str:
    return hashlib.blake2b(value.encode(), digest_size=16).hexdigest()


@content_hash.register
def _(value: pl.DataFrame) -> str:
    digest = hashlib.blake2b(repr(value.schema).encode(), digest_size=16)
    for column in value:
        digest.update(column.name.encode() + b"\0")
        if column.null_count():
            raise TypeError(f"no content hash for a column with nulls: {column.name}")
        if column.dtype == pl.String:
            digest.update(_sized(column).data)
        else:
            content = column.to_numpy().tobytes()
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _sized(column: pl.Series) -> np.ndarray:
    """The strings' UTF-8 bytes one after the other, each behind its length as eight bytes, uint8."""
    lengths = column.str.len_bytes().to_numpy().astype("<u8")
    begins = np.cumsum(lengths + np.uint64(8)) - lengths - np.uint64(8)
    sized = np.empty(int(lengths.sum()) + 8 * len(lengths), np.uint8)
    is_length = np.zeros(len(sized), bool)
    is_length[(begins[:, None] + np.arange(8, dtype=np.uint64)).ravel()] = True
    sized[is_length] = lengths.view(np.uint8)
    sized[~is_length] = np.frombuffer("".join(column.to_list()).encode(), np.uint8)
    return sized


@content_hash.register(dict)
def _(value: Mapping[str, Any]) -> str:
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(value):
        rows = value[name].contiguous()
        digest.update(f"{name} {rows.dtype} {tuple(rows.shape)}\0".encode())
        digest.update(memoryview(rows.view(torch.uint8).numpy()).cast("B"))
    return digest.hexdigest()


@content_hash.register(Path)
def _(value: Path) -> str:
    if not value.is_dir():
        raise NotADirectoryError(f"{value} is no folder")
    files = (file for file in value.rglob("*") if file.is_file() and not file.name.startswith("."))
    return hash_files(value, (file for file in files if file != value / DESCRIPTION))


def hash_files(root: Path, files: Iterable[Path]) -> str:
    """A hash of the files' paths below `root` and their bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files, key=lambda file: file.relative_to(root).as_posix()):
        digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
