"""Whether a file has changed, without reading it. All such checks compare these identities."""

from pathlib import Path
from typing import NamedTuple


class FileIdentity(NamedTuple):
    """What the file system says of a file; equal as long as the file is unchanged.

    It can be stored: the device is left out because its number can change when the machine restarts.

    Attributes:
        bytes: size.
        modified: time of the last change of content, nanoseconds.
        inode: the file, under any of its names.
        changed: time of the last change of content, links or rights, nanoseconds; 0 if not compared.
    """

    bytes: int
    modified: int
    inode: int
    changed: int = 0

    @classmethod
    def of(cls, file: Path, *, strict: bool = False) -> "FileIdentity":
        """The identity of a file as it is now.

        Args:
            file: the file.
            strict: compare the time of any change too. That detects an edit that restores the modification time, but
                a new hard link also counts as a change.

        Raises:
            OSError: there is no such file.
        """
        found = file.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns if strict else 0)
