"""What a model may have forgotten: nothing of it is in the sample corpus, nothing was shown to the sample model."""

from ivr_dagster.sample.corpus import sample_documents
from ivr_dagster.sample.other_text import english_documentation, heldout_code
from ivr_dagster.sample.stdlib_source import docstrings, read_stdlib, strip_docstrings
from ivr_dagster.sample.train_model import is_heldout


def test_the_code_is_what_was_kept_from_the_sample_model_and_has_no_docstrings() -> None:
    code = list(heldout_code())
    shown = read_stdlib(select=lambda path: not is_heldout(path) and path.startswith(("a", "json", "email")))
    assert not set(code) & {strip_docstrings(file.text) for file in shown}
    assert sum(len(text.encode()) for text in code) > 100_000
    assert not any(docstrings(text) for text in code[:20])


def test_the_documentation_is_the_sample_corpus() -> None:
    assert list(english_documentation()) == [text for _, text in sample_documents()]
