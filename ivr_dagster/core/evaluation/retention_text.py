"""Text of another domain, on which a fine-tuned model shows what it has forgotten.

What belongs here: the choice of documents that the run's own corpus does not hold, an even sample of them that is the
same every time, in pieces short enough that a few long documents do not decide the figure.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ivr_dagster.core.corpus.cleaning import clean, is_empty
from ivr_dagster.core.corpus.documents import corpus_files, read_documents
from ivr_dagster.core.corpus.splits import document_id
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.corpus.text_pieces import cut_text
from ivr_dagster.core.errors import InputError

# a hundred kilobytes are some dozens of such pieces, enough for an interval over documents
PIECE_BYTES = 4096


def retention_texts(
    documents: Iterable[str], known: Iterable[str], most_bytes: int, *, normalization: str = "NFC"
) -> list[str]:
    """Pieces of documents that a corpus does not hold, in the order of their hash.

    Args:
        documents: candidates, as they are; they are cleaned as the corpus was.
        known: ids (`splits.document_id`) of the corpus's documents.
        most_bytes: UTF-8 bytes of the texts together, at most; one piece is taken in any case, if there is one.
        normalization: as the corpus was normalised.
    """
    taken, pieces = set(known), {}
    for document in documents:
        text, _ = clean(document, normalization=normalization)
        if is_empty(text) or document_id(text) in taken:
            continue
        for _, piece in cut_text([text], PIECE_BYTES):
            if not is_empty(piece):
                pieces[document_id(piece)] = piece
    wanted, _ = documents_within(pieces.items(), most_bytes)
    return [pieces[number] for number in sorted(wanted)]


def read_retention_documents(root: Path, *, text_key: str, encoding: str) -> Iterator[str]:
    """The documents of a person's folder of text, read as the raw corpus is.

    Raises:
        InputError: no corpus file there; a file that cannot be read (see `corpus.documents`).
    """
    try:
        files = corpus_files(root)
    except InputError as error:
        raise InputError(
            "the folder for measuring retention holds no text that can be read",
            where=root,
            remedy="Put .txt, .jsonl or .json files there, name another folder with --retention-corpora-dir, or leave"
            " it out.",
        ) from error
    for path in files:
        for document in read_documents(path, root, text_key=text_key, encoding=encoding, text_split_bytes=0):
            yield document.text
