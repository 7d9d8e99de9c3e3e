"""Reading a `tokenizer.json`. Every tokenizer of the pipeline is loaded here, once per process and file."""

from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from ivr_dagster.errors import InputError, short_message
from ivr_dagster.storage.file_identity import FileIdentity


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in `file`. Callers share one object until the file changes and must not modify it.

    Raises:
        InputError: the file is missing or is not a tokenizer.
    """
    if not file.is_file():
        raise InputError("no tokenizer there", where=file, remedy=f"Materialize it, or give a folder with {file.name}.")
    return _read(file, FileIdentity.of(file))


@lru_cache(maxsize=4)
def _read(file: Path, identity: FileIdentity) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(
            f"tokenizers cannot read this file ({short_message(error)})",
            where=file,
            remedy="Download it again, or give a folder that save_pretrained wrote.",
        ) from error
