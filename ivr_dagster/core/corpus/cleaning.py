"""Cleaning one document: line ends, Unicode normalization, control characters. Nothing else is touched."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from ivr_dagster.errors import InputError

_FORMS: dict[str, Literal["NFC", "NFKC"] | None] = {"NFC": "NFC", "NFKC": "NFKC", "none": None}
NORMALIZATIONS = tuple(_FORMS)

# C0 but tab, LF and CR; DEL; C1; and the lone surrogates that JSON escapes can bring, which no encoding can write
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_END = re.compile("\r\n?")


@dataclass(frozen=True, slots=True)
class CleaningEffects:
    """What cleaning changed in one document.

    Attributes:
        control_characters_dropped: with them the lone surrogates and the byte order marks at the start.
        line_ends_changed: CRLF and lone CR that became LF.
        normalized: whether Unicode normalization changed anything.
    """

    control_characters_dropped: int
    line_ends_changed: int
    normalized: bool


def clean(text: str, *, normalization: str = "NFC") -> tuple[str, CleaningEffects]:
    """The clean text of a document and what was changed; cleaning a clean text changes nothing.

    Args:
        text: any string, lone surrogates included.
        normalization: "NFC", "NFKC" or "none".

    Raises:
        InputError: the normalization is none of these.
    """
    if normalization not in NORMALIZATIONS:
        raise InputError(
            f"unknown Unicode normalization {normalization!r}", remedy=f"Choose one of {', '.join(NORMALIZATIONS)}"
        )
    dropped = line_ends = 0
    if _CONTROL.search(text):
        text, dropped = _CONTROL.subn("", text)
    if "\r" in text:
        text, line_ends = _LINE_END.subn("\n", text)
    if text.startswith("\ufeff"):
        without_marks = text.lstrip("\ufeff")
        dropped += len(text) - len(without_marks)
        text = without_marks
    form = _FORMS[normalization]
    denormal = form is not None and not unicodedata.is_normalized(form, text)
    if form is not None and denormal:
        text = unicodedata.normalize(form, text)
    return text, CleaningEffects(dropped, line_ends, denormal)


def is_empty(text: str) -> bool:
    """Whether a document holds nothing but white space."""
    return not text or text.isspace()
