"""What an artifact was when it was written, so that whoever reads it sees whether it still is.

A manifest names each file of an artifact with its size and a hash of its bytes, and what the artifact was made of. A
folder's lies in it; a file's lies beside it and is written first, naming what the file holds and what it held before:
killed between the two, a writer leaves a file that its manifest knows.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ivr_dagster.storage.atomic import atomic_write

# in a folder, and the end of its name beside a file
MANIFEST = ".ivr.json"
# of files that readers of a folder look for: one too many is damage, whatever else a person puts there is not
_DATA = (".parquet", ".arrow", ".safetensors")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file as it was written.

    Attributes:
        bytes: its size.
        modified: time of its last change in nanoseconds: while size and time stand, the bytes are not read again.
        inode: which file it is, under whatever name.
        blake2b: a hash of its bytes, 32 hexadecimal digits.
    """

    bytes: int
    modified: int
    inode: int
    blake2b: str


@dataclass(frozen=True)
class Manifest:
    """What is known of an artifact.

    Attributes:
        asset: whose artifact it is.
        run_id: the run that made it.
        made_of: the code, the hash of its settings and the data versions of what it was made of.
        files: stamps by path relative to the folder, or by the file's name; none are known of what earlier versions
            of ivr_dagster wrote, nor of a folder that is being filled.
        before: of a file: what it held before this was written.
        whole: whether `files` are all files of the artifact.
        editable: whether people may change it, which is no damage then.
    """

    asset: str
    run_id: str
    made_of: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Stamp] = field(default_factory=dict)
    before: Mapping[str, Stamp] = field(default_factory=dict)
    whole: bool = True
    editable: bool = False


def place_of_manifest(artifact: Path, *, folder: bool) -> Path:
    """Where the manifest of a folder or a file lies."""
    return artifact / MANIFEST if folder else artifact.parent / f".{artifact.name}{MANIFEST}"


def read_manifest(artifact: Path) -> Manifest | None:
    """The manifest of an artifact; None where there is none, or none that can be read."""
    try:
        file = place_of_manifest(artifact, folder=artifact.is_dir())
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for part in ("files", "before"):
            content[part] = {name: Stamp(**stamp) for name, stamp in content.get(part, {}).items()}
        return Manifest(**content)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_manifest(manifest: Manifest, artifact: Path, *, folder: bool) -> None:
    """Write it where it belongs; it appears whole."""
    with atomic_write(place_of_manifest(artifact, folder=folder)) as staged:
        staged.write_text(json.dumps(asdict(manifest)) + "\n", encoding="utf-8")


def visible_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that neither are hidden nor lie in a hidden folder."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def stamps_of(root: Path, files: Iterable[Path], known: Mapping[str, Stamp] | None = None) -> dict[str, Stamp]:
    """The stamps of files below `root`, by path relative to it.

    Args:
        root: a folder.
        files: files in it.
        known: stamps of files before: the same file, under whichever name, of the same size and time is taken to hold
            the same bytes. Parts of a corpus are linked from one version to the next, and need not be read again.
    """
    before = {(stamp.bytes, stamp.modified, stamp.inode): stamp.blake2b for stamp in (known or {}).values()}

    def look_at(file: Path) -> Stamp:
        found = file.stat()
        said = (found.st_size, found.st_mtime_ns, found.st_ino)
        return Stamp(*said, before.get(said) or _hash_of(file))

    listed = list(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets other threads run
        return {
            file.relative_to(root).as_posix(): stamp
            for file, stamp in zip(listed, pool.map(look_at, listed), strict=True)
        }


def damage(artifact: Path, *, thoroughly: bool = False) -> list[str]:
    """What of an artifact is not as its manifest says, a sentence each.

    Nothing where it is, where people may change it, and where it has no manifest.

    Args:
        artifact: a file or a folder that is there.
        thoroughly: read all bytes; else only those of files whose time of change is another one.
    """
    manifest = read_manifest(artifact)
    if manifest is None or manifest.editable or not manifest.files:
        return []
    root = artifact if artifact.is_dir() else artifact.parent
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = pool.map(
            lambda name: _fault(root / name, (manifest.files[name], manifest.before.get(name)), thoroughly),
            manifest.files,
        )
        faults = [fault for fault in checks if fault]
    if artifact.is_dir() and manifest.whole:
        found = (file for file in visible_files(artifact) if file.suffix in _DATA)
        faults += [
            f"{file} was not written with the others"
            for file in found
            if file.relative_to(artifact).as_posix() not in manifest.files
        ]
    return faults


def _fault(file: Path, known: tuple[Stamp, Stamp | None], thoroughly: bool) -> str:
    try:
        found = file.stat()
        stamps = [stamp for stamp in known if stamp is not None]
        of_size = [stamp for stamp in stamps if stamp.bytes == found.st_size]
        if not of_size:
            return f"{file} has {found.st_size:,} bytes, {stamps[0].bytes:,} were written"
        if not thoroughly and any(stamp.modified == found.st_mtime_ns for stamp in of_size):
            return ""
        digest = _hash_of(file)
        return (
            "" if any(stamp.blake2b == digest for stamp in of_size) else f"{file} holds other bytes than were written"
        )
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read ({error.strerror or error})"


def _hash_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
