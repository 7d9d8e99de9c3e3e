"""Cached hashes of files, so that only changed files are read again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ivr_dagster.storage.atomic import atomic_write
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.file_identity import FileIdentity


class HashedFile(NamedTuple):
    """A file's identity and the hash of its content at that time."""

    identity: FileIdentity
    content: bytes


@dataclass(frozen=True)
class FileHashCache:
    """Hashes by path, stored in one file that may be deleted at any time."""

    store: Path

    def read(self) -> dict[str, HashedFile]:
        """The stored hashes; none if the store is missing or damaged."""
        try:
            digest, content = self.store.read_text(encoding="utf-8").split("\n", 1)
            if digest != content_hash(content):
                return {}
            return {
                path: HashedFile(FileIdentity(*identity), bytes.fromhex(each))
                for path, identity, each in json.loads(content)
            }
        except (OSError, ValueError, TypeError):
            return {}

    def write(self, files: Mapping[str, HashedFile]) -> None:
        """Replace all stored hashes."""
        # JSON escapes also represent file names that are not UTF-8
        content = json.dumps([(path, file.identity, file.content.hex()) for path, file in files.items()])
        with atomic_write(self.store) as staged:
            staged.write_text(f"{content_hash(content)}\n{content}", encoding="utf-8")
