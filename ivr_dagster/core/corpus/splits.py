"""Which documents are held out: decided by the hash of the document alone, not by its position or other documents."""

import hashlib
from typing import Literal, get_args

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)


def document_id(text: str) -> str:
    """128-bit BLAKE2b hash of the UTF-8 bytes of a clean text, as 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_heldout(document_id: str, fraction: float) -> bool:
    """Whether a document is held out, given the held-out `fraction` (0 to 1) of all documents.

    The id maps to a number between 0 and 1; documents below `fraction` are held out. Adding or removing documents
    moves no others, and a larger fraction only adds held-out documents.
    """
    # The last 64 bits: code that shuffles or shards by the first ones stays independent of the split.
    return int(document_id[-16:], 16) < fraction * 2**64
