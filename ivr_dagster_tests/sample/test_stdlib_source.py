"""Separating the docstrings and the code of the standard library."""

import ast
from pathlib import Path

import pytest

from ivr_dagster.sample.stdlib_source import (
    docstrings,
    documents_library,
    is_heldout,
    path_position,
    read_stdlib,
    strip_docstrings,
)


class _WithoutDocstrings(ast.NodeTransformer):
    """Independent oracle: removes docstrings from the syntax tree instead of the text."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
            if node.body and isinstance(node.body[0], ast.Pass):  # replaces a docstring
                del node.body[0]
        return node


def _shape(source: str) -> str:
    return ast.dump(_WithoutDocstrings().visit(ast.parse(source)))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Module."""\nx = 1\n', "x = 1\n"),
        ('def f():\n    """Only this."""\n', "def f():\n    pass\n"),
        ('def f(): "short"\n', "def f(): pass\n"),
        ('def f(): "short"; return 1\n', "def f(): pass; return 1\n"),
        ('class A:\n    """Two\n    lines."""  # why\n    x = 1\n', "class A:\n    pass  # why\n    x = 1\n"),
        ('def f():\n    """One."""\n    """Two."""\n', 'def f():\n    pass\n    """Two."""\n'),
        ('é = 1; "no docstring"\n', 'é = 1; "no docstring"\n'),
        ('class Ä: "é"; ö = "ü"\n', 'class Ä: pass; ö = "ü"\n'),
        ('\x0cdef f():\n    "a" "b"\n    return 1\n', "\x0cdef f():\n    return 1\n"),
        ("", ""),
    ],
)
def test_strip_docstrings_removes_only_docstrings(source: str, expected: str) -> None:
    assert strip_docstrings(source) == expected
    assert docstrings(expected) == []


def test_docstrings_are_in_text_order_without_indentation() -> None:
    source = '"""M."""\nclass A:\n    """A.\n\n    More.\n    """\n    async def f(self):\n        "F."\n'
    assert docstrings(source) == ["M.", "A.\n\nMore.", "F."]


def test_stripped_library_files_have_the_same_syntax_tree() -> None:
    files = list(read_stdlib(select=lambda path: 0.3 < path_position(path) < 0.32))
    assert len(files) > 15
    for file in files:
        stripped = strip_docstrings(file.text)
        assert docstrings(stripped) == [], file.path
        assert _shape(stripped) == _shape(file.text), file.path


def test_sample_corpus_is_not_in_the_training_text_of_the_sample_model() -> None:
    corpus_lines = {
        line.strip()
        for file in read_stdlib(select=lambda path: documents_library(path) and 0.3 < path_position(path) < 0.36)
        for docstring in docstrings(file.text)
        for line in docstring.split("\n")
        if len(line.strip()) >= 50
    }
    training_lines = [
        line.strip()
        for file in read_stdlib(select=lambda path: not is_heldout(path) and 0.3 < path_position(path) < 0.36)
        for line in strip_docstrings(file.text).split("\n")
    ]
    shared = corpus_lines.intersection(training_lines)
    assert len(corpus_lines) > 500
    assert len(shared) / len(corpus_lines) < 0.002, shared  # a comment may repeat a sentence


def test_help_topics_and_installed_packages_are_not_read() -> None:
    paths = [file.path for file in read_stdlib(select=lambda path: path.startswith(("pydoc_data", "site-packages")))]
    assert paths == []


def test_files_that_are_not_python_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_text("print 'two'\n")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    assert [file.path for file in read_stdlib(tmp_path)] == ["good.py"]
