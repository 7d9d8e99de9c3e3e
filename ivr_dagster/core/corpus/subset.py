"""An even sample of a corpus that stays nearly the same as documents come and go."""

from collections.abc import Iterable

# of a split's bytes, the share that may be kept from training to validate on
MOST_VALIDATION = 0.05


def documents_within(
    documents: Iterable[tuple[str, str]], most_bytes: int, *, from_the_end: bool = False
) -> tuple[set[str], int]:
    """Ids of documents that make up at most `most_bytes` of text (0: all of them), and their UTF-8 bytes.

    Documents are taken by their id, a hash of the text, in ascending order or `from_the_end`. At least one is taken,
    if there is one.
    """
    sizes = {document_id: len(text.encode("utf-8")) for document_id, text in documents}
    wanted: set[str] = set()
    total = 0
    for document_id in sorted(sizes, reverse=from_the_end):
        if most_bytes and wanted and total + sizes[document_id] > most_bytes:
            break
        wanted.add(document_id)
        total += sizes[document_id]
    return wanted, total
