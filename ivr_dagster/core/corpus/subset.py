"""An even sample of a corpus that stays nearly the same as documents come and go."""

from collections.abc import Iterable, Mapping

# of a split's bytes, the share that may be kept from training to validate on
MOST_VALIDATION = 0.05


def document_sizes(documents: Iterable[tuple[str, str]]) -> dict[str, int]:
    """UTF-8 bytes of documents by their id."""
    return {document_id: len(text.encode("utf-8")) for document_id, text in documents}


def ids_within(sizes: Mapping[str, int], most_bytes: int, *, from_the_end: bool = False) -> tuple[set[str], int]:
    """Ids of documents that make up at most `most_bytes` of text (0: all of them), and their UTF-8 bytes.

    Documents are taken by their id, a hash of the text, in ascending order or `from_the_end`. At least one is taken,
    if there is one.
    """
    wanted: set[str] = set()
    total = 0
    for document_id in sorted(sizes, reverse=from_the_end):
        if most_bytes and wanted and total + sizes[document_id] > most_bytes:
            break
        wanted.add(document_id)
        total += sizes[document_id]
    return wanted, total


def documents_within(
    documents: Iterable[tuple[str, str]], most_bytes: int, *, from_the_end: bool = False
) -> tuple[set[str], int]:
    """:func:`ids_within` for documents that nothing else is to be known of."""
    return ids_within(document_sizes(documents), most_bytes, from_the_end=from_the_end)


def validation_ids(sizes: Mapping[str, int], validation_bytes: int, train_bytes: int = 0) -> tuple[set[str], int]:
    """Ids of the documents of the train split that are kept from training to validate on, and their UTF-8 bytes.

    They are taken from the end, `MOST_VALIDATION` of what is trained on at most; none are where a single document is
    more than twice what is wanted.

    Args:
        sizes: UTF-8 bytes by document of the train split.
        validation_bytes: what is wanted; 0 for none.
        train_bytes: what is trained on, 0 for all.
    """
    everything = sum(sizes.values())
    wanted = min(validation_bytes, round(MOST_VALIDATION * min(everything, train_bytes or everything)))
    if not wanted:
        return set(), 0
    kept, size = ids_within(sizes, wanted, from_the_end=True)
    return (kept, size) if size <= 2 * wanted else (set(), 0)
