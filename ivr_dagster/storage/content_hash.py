"""Content hashes, the data versions of artifacts: equal content gives an equal hash, wherever and whenever it was made.

All hashes are BLAKE2b of 128 bits as 32 hexadecimal digits.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

BLOCK = 1 << 20


def new_digest(content: bytes = b"") -> "hashlib.blake2b":
    """A hash to add bytes to."""
    return hashlib.blake2b(content, digest_size=16)


@singledispatch
def content_hash(value: object) -> str:
    """The hash of a text, a table, tensors by name, or the files in a folder.

    Raises:
        TypeError: a value of another type, or a column with nulls.
        NotADirectoryError: a path that is not a folder.
    """
    raise TypeError(f"no content hash for {type(value).__name__}")


@content_hash.register
def _(value: str) -> str:
    return new_digest(value.encode()).hexdigest()


@content_hash.register
def _(value: pl.DataFrame) -> str:
    digest = new_digest(repr(value.schema).encode())
    for column in value:
        digest.update(column.name.encode() + b"\0")
        if column.null_count():
            raise TypeError(f"no content hash for a column with nulls: {column.name}")
        if column.dtype == pl.String:
            digest.update(_length_prefixed(column).data)
        else:
            content = column.to_numpy().tobytes()
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _length_prefixed(column: pl.Series) -> np.ndarray:
    """The UTF-8 bytes of all strings, each after its length as eight bytes, uint8."""
    lengths = column.str.len_bytes().to_numpy().astype("<u8")
    begins = np.cumsum(lengths + np.uint64(8)) - lengths - np.uint64(8)
    found = np.empty(int(lengths.sum()) + 8 * len(lengths), np.uint8)
    is_length = np.zeros(len(found), bool)
    is_length[(begins[:, None] + np.arange(8, dtype=np.uint64)).ravel()] = True
    found[is_length] = lengths.view(np.uint8)
    found[~is_length] = np.frombuffer("".join(column.to_list()).encode(), np.uint8)
    return found


@content_hash.register(dict)
def _(value: Mapping[str, Any]) -> str:
    import torch

    digest = new_digest()
    for name in sorted(value):
        rows = value[name].contiguous()
        digest.update(f"{name} {rows.dtype} {tuple(rows.shape)}\0".encode())
        digest.update(memoryview(rows.view(torch.uint8).numpy()).cast("B"))
    return digest.hexdigest()


@content_hash.register(Path)
def _(value: Path) -> str:
    if not value.is_dir():
        raise NotADirectoryError(f"{value} is not a folder")
    return hash_files(value, (file for file in value.rglob("*") if file.is_file() and not file.name.startswith(".")))


def hash_file(file: Path) -> str:
    """The hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, new_digest).hexdigest()


def hash_files(root: Path, files: Iterable[Path]) -> str:
    """The hash of the files' paths below `root` and their bytes."""
    digest = new_digest()
    for file in sorted(files, key=lambda file: file.relative_to(root).as_posix()):
        digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
