"""Train and held-out split: a document's hash alone decides, independent of its position and of other documents."""

import hashlib
from typing import Literal, get_args

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)


def document_id(text: str) -> str:
    """128-bit BLAKE2b hash of the UTF-8 bytes of a clean text, as 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_heldout(document_id: str, fraction: float) -> bool:
    """Whether a document is held out, if `fraction` (0 to 1) of all documents are.

    The id maps to a number between 0 and 1; documents below `fraction` are held out. Adding or removing documents does
    not move any others, and a larger fraction only adds held-out documents.
    """
    # Uses the last 64 bits, so that shuffling or sharding by the first ones is independent of the split.
    return int(document_id[-16:], 16) < fraction * 2**64
