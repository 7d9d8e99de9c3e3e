"""Cleans the text of one document: line endings, Unicode normalization, control characters, and nothing else."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Normalization = Literal["NFC", "NFKC", "none"]

# C0 except tab, LF and CR; DEL; C1; and lone surrogates, which JSON escapes can produce and UTF-8 cannot encode
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_ENDING = re.compile("\r\n?")


@dataclass(frozen=True, slots=True)
class CleaningEffects:
    """What cleaning changed in one document.

    Attributes:
        control_characters_dropped: includes lone surrogates and byte order marks at the start.
        line_endings_changed: CRLF and lone CR replaced by LF.
        normalized: whether Unicode normalization changed anything.
    """

    control_characters_dropped: int
    line_endings_changed: int
    normalized: bool


def clean(text: str, *, normalization: Normalization = "NFC") -> tuple[str, CleaningEffects]:
    """Cleans the text of a document, and returns what changed. Cleaning is idempotent.

    Args:
        text: any string, including lone surrogates.
        normalization: the Unicode normalization form.
    """
    dropped = line_endings = 0
    if _CONTROL.search(text):
        text, dropped = _CONTROL.subn("", text)
    if "\r" in text:
        text, line_endings = _LINE_ENDING.subn("\n", text)
    if text.startswith("\ufeff"):
        without_marks = text.lstrip("\ufeff")
        dropped += len(text) - len(without_marks)
        text = without_marks
    normalize = normalization != "none" and not unicodedata.is_normalized(normalization, text)
    if normalization != "none" and normalize:
        text = unicodedata.normalize(normalization, text)
    return text, CleaningEffects(dropped, line_endings, normalize)


def is_empty(text: str) -> bool:
    """Whether a document is empty or contains only whitespace."""
    return not text or text.isspace()
