"""Text that every Python carries and a run's own corpus does not hold: for measuring what fine-tuning unlearns.

The sample model knows the standard library's code and nothing else, so the files of it that it was never shown are
what it can forget; they hold no docstrings, which the sample corpus consists of. For any other model it is the English
of the sample corpus.
"""

from collections.abc import Iterator

from ivr_dagster.sample.corpus import sample_documents
from ivr_dagster.sample.stdlib_source import read_stdlib, strip_docstrings
from ivr_dagster.sample.train_model import is_heldout

HELDOUT_CODE = "code of Python's standard library that was kept from the sample model"
ENGLISH_DOCUMENTATION = "the English documentation that every Python carries"


def heldout_code() -> Iterator[str]:
    """The standard library's files that the sample model never saw, without docstrings, in path order."""
    for file in read_stdlib(select=is_heldout):
        if (text := strip_docstrings(file.text)).strip():
            yield text


def english_documentation() -> Iterator[str]:
    """Docstrings by module and help topics, as the sample corpus has them."""
    return (text for _, text in sample_documents())
