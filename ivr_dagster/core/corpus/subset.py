"""Uniform samples of a corpus that hardly change when documents are added or removed."""

from collections.abc import Iterable, Mapping

# Largest share of the trained bytes that may be used for validation.
MAX_VALIDATION_SHARE = 0.05


def document_sizes(documents: Iterable[tuple[str, str]]) -> dict[str, int]:
    """UTF-8 bytes of documents by id, from (id, text) pairs."""
    return {document_id: len(text.encode("utf-8")) for document_id, text in documents}


def ids_within(sizes: Mapping[str, int], max_bytes: int, *, from_the_end: bool = False) -> tuple[set[str], int]:
    """Ids of documents with at most `max_bytes` of text in total (0: all documents), and their UTF-8 bytes.

    Documents are selected in ascending order of their id, a hash of the text, or in descending order if
    `from_the_end`. At least one is selected, if there is one.
    """
    selected: set[str] = set()
    total = 0
    for document_id in sorted(sizes, reverse=from_the_end):
        if max_bytes and selected and total + sizes[document_id] > max_bytes:
            break
        selected.add(document_id)
        total += sizes[document_id]
    return selected, total


def documents_within(
    documents: Iterable[tuple[str, str]], max_bytes: int, *, from_the_end: bool = False
) -> tuple[set[str], int]:
    """:func:`ids_within` of (id, text) pairs."""
    return ids_within(document_sizes(documents), max_bytes, from_the_end=from_the_end)


def split_validation(
    sizes: Mapping[str, int], validation_bytes: int, train_bytes: int = 0
) -> tuple[dict[str, int], dict[str, int]]:
    """The train split divided into documents to train on and documents to validate on, as UTF-8 bytes by id.

    The latter are selected from the end, at most `MAX_VALIDATION_SHARE` of the trained bytes. None are selected if a
    single document has more than twice the bytes wanted.

    Args:
        sizes: UTF-8 bytes by document id of the train split.
        validation_bytes: bytes wanted; 0 for none.
        train_bytes: bytes to train on; 0 for all.
    """
    everything = sum(sizes.values())
    wanted = min(validation_bytes, round(MAX_VALIDATION_SHARE * min(everything, train_bytes or everything)))
    selected, size = ids_within(sizes, wanted, from_the_end=True)
    if not wanted or size > 2 * wanted:
        selected = set()
    others, validation = ({i: sizes[i] for i in sizes if (i in selected) == chosen} for chosen in (False, True))
    return others, validation
