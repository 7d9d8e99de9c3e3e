"""Manifests: what an artifact held when it was written, so that readers detect damage.

A manifest lists each file of an artifact with its size and hash, and what the artifact was made of. A folder's manifest
is inside it. A file's manifest is beside it and is written first, with the hashes of the new and the old content: if
the writer is killed in between, the manifest still matches the file.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ivr_dagster.storage.atomic import atomic_write
from ivr_dagster.storage.content_hash import hash_file
from ivr_dagster.storage.file_identity import FileIdentity

# its name in a folder, and the suffix of its name beside a file
MANIFEST = ".ivr.json"
# readers of a folder list these files, so an unknown one is damage
_DATA_SUFFIXES = (".parquet", ".arrow", ".safetensors")


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file as it was written: its identity and the BLAKE2b of its content, 32 hexadecimal digits."""

    identity: FileIdentity
    blake2b: str


@dataclass(frozen=True)
class Manifest:
    """What is known of an artifact.

    Attributes:
        asset: its asset key.
        run_id: the run that made it.
        made_of: code revision, settings with their values, and data versions of the inputs.
        files: by path relative to the folder, or by the file's name; empty for a folder that is being filled.
        before: of a file: its previous content.
        whole: whether `files` lists all files of the artifact.
        editable: whether users may edit the artifact; then no change is damage.
    """

    asset: str
    run_id: str
    made_of: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, WrittenFile] = field(default_factory=dict)
    before: Mapping[str, WrittenFile] = field(default_factory=dict)
    whole: bool = True
    editable: bool = False


def manifest_path(artifact: Path, *, folder: bool) -> Path:
    """Where the manifest of a folder or a file is."""
    return artifact / MANIFEST if folder else artifact.parent / f".{artifact.name}{MANIFEST}"


def read_manifest(artifact: Path) -> Manifest | None:
    """The manifest of an artifact, None if it is missing or unreadable."""
    try:
        content = json.loads(manifest_path(artifact, folder=artifact.is_dir()).read_text(encoding="utf-8"))
        for part in ("files", "before"):
            content[part] = {
                name: WrittenFile(FileIdentity(each["bytes"], each["modified"], each["inode"]), each["blake2b"])
                for name, each in content.get(part, {}).items()
            }
        return Manifest(**content)
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return None


def write_manifest(manifest: Manifest, artifact: Path, *, folder: bool) -> None:
    """Write a manifest, whole or not at all."""
    content = asdict(manifest)
    for part in ("files", "before"):
        content[part] = {
            name: {**each.identity._asdict(), "blake2b": each.blake2b} for name, each in getattr(manifest, part).items()
        }
    with atomic_write(manifest_path(artifact, folder=folder)) as staged:
        staged.write_text(json.dumps(content) + "\n", encoding="utf-8")


def visible_files(folder: Path) -> Iterator[Path]:
    """The files below a folder, without hidden files and folders."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def describe_files(
    root: Path, files: Iterable[Path], known: Mapping[str, WrittenFile] | None = None
) -> dict[str, WrittenFile]:
    """Identity and hash of files, by path relative to `root`.

    Args:
        root: a folder.
        files: files in it.
        known: files described before. One with the same identity is not read again: parts of a corpus are hard-linked
            from one version to the next.
    """
    hashes = {each.identity: each.blake2b for each in (known or {}).values()}

    def describe(file: Path) -> WrittenFile:
        identity = FileIdentity.of(file)
        return WrittenFile(identity, hashes.get(identity) or hash_file(file))

    listed = list(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the GIL
        return {
            file.relative_to(root).as_posix(): each
            for file, each in zip(listed, pool.map(describe, listed), strict=True)
        }


def find_damage(artifact: Path, *, read_all: bool = False) -> list[str]:
    """How an artifact differs from its manifest, one sentence each; nothing if it is editable or has no manifest.

    Args:
        artifact: an existing file or folder.
        read_all: read every file; otherwise only those whose modification time changed.
    """
    manifest = read_manifest(artifact)
    if manifest is None or manifest.editable or not manifest.files:
        return []
    root = artifact if artifact.is_dir() else artifact.parent

    def check(name: str) -> str:
        versions = [manifest.files[name], *([manifest.before[name]] if name in manifest.before else [])]
        return _describe_change(root / name, versions, read_all)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = [fault for fault in pool.map(check, manifest.files) if fault]
    if artifact.is_dir() and manifest.whole:
        faults += [
            f"{file} was not written with the others"
            for file in visible_files(artifact)
            if file.suffix in _DATA_SUFFIXES and file.relative_to(artifact).as_posix() not in manifest.files
        ]
    return faults


def _describe_change(file: Path, versions: list[WrittenFile], read_all: bool) -> str:
    """How a file differs from all versions that its manifest knows, empty if it equals one of them."""
    try:
        found = FileIdentity.of(file)
        same_size = [each for each in versions if each.identity.bytes == found.bytes]
        if not same_size:
            return f"{file} has {found.bytes:,} bytes, {versions[0].identity.bytes:,} were written"
        # a copied folder keeps times but not inodes
        if not read_all and any(each.identity.modified == found.modified for each in same_size):
            return ""
        if hash_file(file) in [each.blake2b for each in same_size]:
            return ""
        return f"{file} holds other bytes than were written"
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read ({error.strerror or error})"
