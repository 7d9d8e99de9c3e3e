"""Which documents are held out: decided by the document's own hash, never by its place or its neighbours."""

import hashlib
from typing import Literal

from ivr_dagster.errors import InputError

Split = Literal["train", "heldout"]


def document_id(text: str) -> str:
    """The 128-bit BLAKE2b hash of the text's UTF-8 bytes, as 32 hexadecimal digits. `text` must be clean."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_heldout(document_id: str, fraction: float) -> bool:
    """Whether a document is held out, where `fraction` (0 to 1) of all documents are.

    The id is a point between 0 and 1, held out below `fraction`: adding or removing other documents moves
    nothing, and a larger fraction only adds to those held out.

    Raises:
        InputError: the fraction is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise InputError(
            f"the held-out share must lie between 0 and 1, found {fraction}",
            remedy="Set --heldout-fraction to 0.05, say",
        )
    # the last 64 bits, so that whoever shuffles or shards by the first ones stays independent of the split
    return int(document_id[-16:], 16) < fraction * 2**64
