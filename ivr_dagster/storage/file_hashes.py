"""Hashes of files, kept beside what the file system says of each, so that only those that changed are read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ivr_dagster.storage.atomic import atomic_write


class KnownFile(NamedTuple):
    """A file as it was hashed.

    Attributes:
        said: what the file system said of it: size, times of change of content and of anything (ns), inode, device.
        content: the hash of its bytes.
    """

    said: tuple[int, ...]
    content: bytes


@dataclass(frozen=True)
class FileHashCache:
    """A file that keeps what is known of others, by path; it may be deleted at any time."""

    store: Path

    def read(self) -> dict[str, KnownFile]:
        """What is kept; nothing where it is not whole."""
        try:
            digest, _, content = self.store.read_bytes().partition(b"\n")
            if digest.decode() != _digest(content):
                return {}
            return {path: KnownFile(tuple(said), bytes.fromhex(each)) for path, said, each in json.loads(content)}
        except (OSError, ValueError):
            return {}

    def write(self, known: Mapping[str, KnownFile]) -> None:
        """Keep these in place of what was kept."""
        # JSON's escapes hold names that are no UTF-8 too
        content = json.dumps([(path, file.said, file.content.hex()) for path, file in known.items()]).encode()
        self.store.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.store) as staged:
            staged.write_bytes(f"{_digest(content)}\n".encode() + content)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
