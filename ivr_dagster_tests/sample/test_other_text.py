"""Out-of-domain text: not in the sample corpus, and not in the training text of the sample model."""

from ivr_dagster.sample.other_text import heldout_code
from ivr_dagster.sample.stdlib_source import docstrings, is_heldout, read_stdlib, strip_docstrings


def test_heldout_code_was_not_trained_on_and_has_no_docstrings() -> None:
    code = list(heldout_code())
    trained_on = read_stdlib(select=lambda path: not is_heldout(path) and path.startswith(("a", "json", "email")))
    assert not set(code) & {strip_docstrings(file.text) for file in trained_on}
    assert sum(len(text.encode()) for text in code) > 100_000
    assert not any(docstrings(text) for text in code[:20])
