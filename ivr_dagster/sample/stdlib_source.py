"""The standard library of the running Python as text: its files, their docstrings, and their code without docstrings.

The sample corpus consists of the docstrings, and the sample model was trained on the code: :func:`strip_docstrings`
removes what :func:`docstrings` finds. Modules are read, not imported.
"""

import ast
import functools
import hashlib
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Installed packages, caches and codec tables are not prose or code of the standard library; pydoc_data is half of the
# sample corpus; lib2to3's test data are unusual on purpose.
_EXCLUDED = ("site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings", "lib2to3/tests/data")

# Folders whose docstrings do not document the library.
_NOT_DOCUMENTATION = frozenset({"test", "tests", "idlelib"})

# Share of the files that the sample model was not trained on.
HELDOUT_SHARE = 0.02
# Share of the files that are general text for training on the sample corpus.
GENERAL_SHARE = 0.02


@dataclass(frozen=True)
class SourceFile:
    """A file of the standard library: its path below Lib, with "/" between folders, and its text."""

    path: str
    text: str

    @property
    def module(self) -> str:
        """Dotted name, such as `email.message`; a package has the name of its folder."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def documents_library(path: str) -> bool:
    """Whether the docstrings of a file document the library, not its tests or IDLE."""
    return _NOT_DOCUMENTATION.isdisjoint(path.split("/")[:-1])


def is_heldout(path: str) -> bool:
    """Whether the sample model was not trained on the file of this path.

    The path decides, so a file stays in its split across Python versions even if its text changes.
    """
    return path_position(path) < HELDOUT_SHARE


def is_general(path: str) -> bool:
    """Whether the file of this path is general text of the sample, which the sample model was trained on."""
    return HELDOUT_SHARE <= path_position(path) < HELDOUT_SHARE + GENERAL_SHARE


def path_position(path: str) -> float:
    """A number in [0, 1) that depends only on the path."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest()) / 2**64


def read_stdlib(
    folder: Path | None = None, *, select: Callable[[str], bool] = lambda path: True
) -> Iterator[SourceFile]:
    """Yields the Python files below Lib in path order, without files that are not valid Python.

    Args:
        folder: read this folder instead of the running Python's Lib.
        select: receives a path below Lib and returns whether to read the file.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    relative = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    for path in relative:
        if any(f"/{path}".startswith(f"/{part}/") or f"/{part}/" in f"/{path}" for part in _EXCLUDED):
            continue
        if path.startswith("_sysconfigdata") or not select(path):  # _sysconfigdata has the build machine's settings
            continue
        try:
            with tokenize.open(root / path) as file:
                text = file.read()
            _parse(text)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        yield SourceFile(path, text)


def docstrings(source: str) -> list[str]:
    """Docstrings of the module, its classes and functions, without indentation, in text order."""
    return [ast.get_docstring(node, clean=True) or "" for node in _documented(_parse(source))]


def strip_docstrings(source: str) -> str:
    """The code without docstrings; a body that was only a docstring becomes `pass`."""
    lines = source.encode().split(b"\n")  # ast counts columns in UTF-8 bytes and lines by \n
    for node in reversed(_documented(_parse(source))):
        statement = node.body[0]
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        before, after = lines[first][: statement.col_offset], lines[last][statement.end_col_offset :]
        whole_lines = not before.strip() and not after.strip()
        # an empty body would be invalid, and a string after it would become the docstring
        needed = len(node.body) == 1 or _is_string(node.body[1])
        lines[first : last + 1] = [] if whole_lines and not needed else [before + b"pass" + after]
    return b"\n".join(lines).decode()


_Documentable = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@functools.lru_cache(maxsize=1)  # read_stdlib parses each file once, and its caller usually parses it again
def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as invalid escapes
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
