"""Formulas of the documentation as MathML, which browsers render without JavaScript or web fonts."""

from typing import Any

from latex2mathml.converter import convert


def format_math(source: str, *_: Any, **__: Any) -> str:
    """Convert a fenced `math` block; the signature is that of a pymdownx.superfences formatter."""
    return f"<p>{convert(source, display='block')}</p>"
