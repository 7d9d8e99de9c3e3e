"""Out-of-domain text in every Python installation, against forgetting and for measuring it.

The sample model knows only code of the standard library, so it can forget code. Under the sample preset, some files it
was trained on are mixed into training, and forgetting is measured on files it was not trained on. They have no
docstrings, of which the sample corpus consists. Other models are measured on the English sample corpus.
"""

from collections.abc import Callable, Iterator

from ivr_dagster.sample.corpus import sample_documents
from ivr_dagster.sample.stdlib_source import is_general, is_heldout, read_stdlib, strip_docstrings

HELDOUT_CODE = "standard library code that the sample model was not trained on"
ENGLISH_DOCUMENTATION = "the English documentation of the Python standard library"


def heldout_code() -> Iterator[str]:
    """Yields the standard library files that the sample model was not trained on, without docstrings, in path order."""
    return _code(is_heldout)


def general_code() -> Iterator[str]:
    """Yields some of the standard library files that the sample model was trained on, as it was, in path order."""
    return _code(is_general)


def _code(select: Callable[[str], bool]) -> Iterator[str]:
    for file in read_stdlib(select=select):
        if (text := strip_docstrings(file.text)).strip():
            yield text


def english_documentation() -> Iterator[str]:
    """Yields the documents of the sample corpus: docstrings by module, and help topics."""
    return (text for _, text in sample_documents())
