"""Text of another domain: mixed into training so that a model does not forget, and what it forgot is measured on.

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
from ivr_dagster.errors import InputError

# a hundred kilobytes are some dozens of such pieces, enough for an interval over documents
PIECE_BYTES = 4096


def other_texts(
    documents: Iterable[str],
    known: Iterable[str],
    most_bytes: int,
    *,
    normalization: str = "NFC",
    from_the_end: bool = False,
) -> list[str]:
    """Pieces of documents that a corpus does not hold, in the order of their hash.

    Args:
        documents: candidates, as they are; they are cleaned as the corpus was.
        known: ids (`splits.document_id`) of the corpus's documents.
        most_bytes: UTF-8 bytes of the texts together, at most; one piece is taken in any case, if there is one.
        normalization: as the corpus was normalized.
        from_the_end: take those with the greatest hashes, not the least: what is trained on and what is measured on
            are taken from two ends, so that one folder can serve for both.
    """
    taken, pieces = set(known), {}
    for document in documents:
        text, _ = clean(document, normalization=normalization)
        if is_empty(text) or document_id(text) in taken:
            continue
        for _, piece in cut_text([text], PIECE_BYTES):
            if not is_empty(piece):
                pieces[document_id(piece)] = piece
    wanted, _ = documents_within(pieces.items(), most_bytes, from_the_end=from_the_end)
    return [pieces[number] for number in sorted(wanted)]


def read_other_documents(
    root: Path,
    *,
    text_key: str,
    encoding: str,
    text_split_bytes: int,
    encoding_errors: str = "strict",
    on_bad_input: str = "fail",
    setting: str = "retention_corpora_dir",
) -> Iterator[str]:
    """The documents of a person's folder of text, named by a `setting`, read and cut as the raw corpus is,
    so that a document of both is the same document.

    Raises:
        InputError: no corpus file there; a file that cannot be read (see `corpus.documents`).
    """
    for path in other_files(root, setting):
        documents = read_documents(
            path,
            root,
            text_key=text_key,
            encoding=encoding,
            encoding_errors=encoding_errors,
            text_split_bytes=text_split_bytes,
            on_skip=(lambda *_: None) if on_bad_input == "skip" else None,
        )
        yield from (document.text for document in documents)


def other_files(root: Path, setting: str) -> list[Path]:
    """The corpus files of a folder that a `setting` names.

    Raises:
        InputError: there are none.
    """
    try:
        return corpus_files(root)
    except InputError as error:
        found = f"{error.where}: {error.message}" if error.where not in (None, root) else error.message
        raise InputError(
            f"{setting} names a folder without text that can be read ({found})",
            where=root,
            remedy=f"Put .txt, .jsonl or .json files there, or name another folder with --{setting.replace('_', '-')}.",
        ) from error
