"""Whether a file has changed, without reading it: device, inode, size and modification time."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class FileIdentity:
    """A file as it is now. Two identities are equal if they are of the same unchanged file, whatever its name.

    Attributes:
        path: the name it was looked up by; not compared.
        identity: device, inode, size in bytes, modification time in nanoseconds.
    """

    path: Path = field(compare=False)
    identity: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: Path) -> "FileIdentity":
        """The identity of the file at `path`.

        Raises:
            OSError: there is no such file.
        """
        found = path.stat()
        return cls(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
