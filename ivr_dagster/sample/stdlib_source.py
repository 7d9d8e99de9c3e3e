"""The running Python's standard library as text: which files count, their docstrings, their code without docstrings.

The sample corpus is the docstrings and the sample model is trained on the code, so both sides take their cut from
here: what :func:`docstrings` finds is what :func:`strip_docstrings` removes. No module is imported, only read.
"""

import ast
import functools
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Installed packages, caches and byte-for-byte tables are not the standard library's prose or code; pydoc_data is
# half of the sample corpus; lib2to3's test data are deliberately odd files.
_NEVER = ("site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings", "lib2to3/tests/data")

# Folders whose docstrings say nothing about the library itself.
_NOT_DOCUMENTATION = frozenset({"test", "tests", "idlelib"})


@dataclass(frozen=True)
class SourceFile:
    """One file of the standard library: its path below Lib in POSIX form, and its text."""

    path: str
    text: str

    @property
    def module(self) -> str:
        """The dotted name, e.g. `email.message`; a package has its folder's name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def documents_library(path: str) -> bool:
    """Whether a file's docstrings are about the library, not about its tests or IDLE."""
    return _NOT_DOCUMENTATION.isdisjoint(path.split("/")[:-1])


def read_stdlib(
    folder: Path | None = None, *, select: Callable[[str], bool] = lambda path: True
) -> Iterator[SourceFile]:
    """The Python files below Lib in path order; files that are no valid Python are left out.

    Args:
        folder: another folder to read instead of the running Python's Lib.
        select: called with a file's path below Lib; only files for which it is true are read.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    relative = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    for path in relative:
        if any(f"/{path}".startswith(f"/{part}/") or f"/{part}/" in f"/{path}" for part in _NEVER):
            continue
        if path.startswith("_sysconfigdata") or not select(path):  # the former are the build machine's settings
            continue
        try:
            with tokenize.open(root / path) as file:
                text = file.read()
            _parse(text)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        yield SourceFile(path, text)


def docstrings(source: str) -> list[str]:
    """The docstrings of the module, its classes and functions, cleaned of indentation, in the order of the text."""
    return [ast.get_docstring(node, clean=True) or "" for node in _documented(_parse(source))]


def strip_docstrings(source: str) -> str:
    """The same code without docstrings, still valid Python: a body that was only a docstring becomes `pass`."""
    lines = source.encode().split(b"\n")  # ast counts columns in UTF-8 bytes, and only \n ends a line for it
    for node in reversed(_documented(_parse(source))):
        statement = node.body[0]
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        before, after = lines[first][: statement.col_offset], lines[last][statement.end_col_offset :]
        whole_lines = not before.strip() and not after.strip()
        # without a statement in its place an empty body were no Python, and a string behind it became the docstring
        needed = len(node.body) == 1 or _is_string(node.body[1])
        lines[first : last + 1] = [] if whole_lines and not needed else [before + b"pass" + after]
    return b"\n".join(lines).decode()


_Documentable = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@functools.lru_cache(maxsize=1)  # reading a file checks it, and what is read is mostly taken apart at once
def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like are the library's affair
        return ast.parse(source)


def _is_string(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _documented(tree: ast.Module) -> list[_Documentable]:
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
    ]
    return sorted(nodes, key=lambda node: (node.body[0].lineno, node.body[0].col_offset))
