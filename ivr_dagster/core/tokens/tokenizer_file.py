"""A `tokenizer.json` as `tokenizers` reads it, once a process and file: several steps of a run ask for the same few."""

from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from ivr_dagster.errors import InputError, short_message
from ivr_dagster.storage.file_identity import FileIdentity


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a file, the same object while the file stays as it is; not to be changed.

    Raises:
        InputError: it is none.
        OSError: there is none.
    """
    return read_known(FileIdentity.of(file))


@lru_cache(maxsize=4)
def read_known(file: FileIdentity) -> Tokenizer:
    """As :func:`read_tokenizer`, of a file that was looked at already."""
    try:
        return Tokenizer.from_file(str(file.path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(
            f"this is no tokenizer that tokenizers can read ({short_message(error)})",
            where=file.path,
            remedy="Fetch it anew, or give a folder that save_pretrained wrote.",
        ) from error
