"""A `tokenizer.json` as `tokenizers` reads it, once a process and file: several steps of a run ask for the same few."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from ivr_dagster.core.errors import InputError
from ivr_dagster.core.faults import first_words


@dataclass(frozen=True)
class FileAsItIs:
    """A file as it is now: the same under another name, another one when it was written anew."""

    path: Path = field(compare=False)
    identity: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: Path) -> "FileAsItIs":
        """Raises OSError where there is none."""
        found = path.stat()
        return cls(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a file, the same object while the file stays as it is; not to be changed.

    Raises:
        InputError: it is none.
        OSError: there is none.
    """
    return read_known(FileAsItIs.of(file))


@lru_cache(maxsize=4)
def read_known(file: FileAsItIs) -> Tokenizer:
    """As :func:`read_tokenizer`, of a file that was looked at already."""
    try:
        return Tokenizer.from_file(str(file.path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(
            f"this is no tokenizer that tokenizers can read ({first_words(error)})",
            where=file.path,
            remedy="Fetch it anew, or give a folder that save_pretrained wrote.",
        ) from error
