"""Out-of-domain text: mixed into training against forgetting, and used to measure forgetting.

Selects documents that the corpus does not contain: a uniform sample, the same every time, in pieces short enough that
a few long documents do not dominate the result.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ivr_dagster.core.corpus.cleaning import Normalization, clean, is_empty
from ivr_dagster.core.corpus.documents import read_documents
from ivr_dagster.core.corpus.files import corpus_files
from ivr_dagster.core.corpus.splits import document_id
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.corpus.text_pieces import cut_text
from ivr_dagster.errors import InputError
from ivr_dagster.settings.groups import CorpusSettings

# A hundred kilobytes give some dozens of such pieces, enough for a confidence interval over documents.
PIECE_BYTES = 4096


def select_other_texts(
    documents: Iterable[str],
    known: Iterable[str],
    max_bytes: int,
    *,
    normalization: Normalization = "NFC",
    from_the_end: bool = False,
) -> list[str]:
    """Pieces of documents that the corpus does not contain, in the order of their hash.

    Args:
        documents: raw candidates; they are cleaned as the corpus was.
        known: ids (`splits.document_id`) of the corpus's documents.
        max_bytes: maximum UTF-8 bytes of the pieces in total; at least one piece is selected, if there is one.
        normalization: the corpus's normalization.
        from_the_end: select the largest hashes instead of the smallest. Training and measuring select from different
            ends, so one folder can serve both.
    """
    excluded, pieces = set(known), {}
    for document in documents:
        text, _ = clean(document, normalization=normalization)
        if is_empty(text) or document_id(text) in excluded:
            continue
        for _, piece in cut_text([text], PIECE_BYTES):
            if not is_empty(piece):
                pieces[document_id(piece)] = piece
    selected, _ = documents_within(pieces.items(), max_bytes, from_the_end=from_the_end)
    return [pieces[piece_id] for piece_id in sorted(selected)]


def read_other_documents(root: Path, settings: CorpusSettings, setting: str) -> Iterator[str]:
    """Yields the documents of a folder, read and cut as the raw corpus is, so that shared documents are recognized.

    Args:
        root: the folder.
        settings: how to read it, see `read_documents`.
        setting: the setting that names the folder, for messages.

    Raises:
        InputError: no corpus file in the folder; see `read_documents`.
    """
    on_skip = (lambda *_: None) if settings.on_bad_input == "skip" else None
    for path in other_files(root, setting):
        yield from (document.text for document in read_documents(path, root, settings, on_skip=on_skip))


def other_files(root: Path, setting: str) -> list[Path]:
    """The corpus files of the folder that `setting` names.

    Raises:
        InputError: there are none.
    """
    try:
        return corpus_files(root)
    except InputError as error:
        found = f"{error.where}: {error.message}" if error.where not in (None, root) else error.message
        raise InputError(
            f"{setting} names a folder without readable text ({found})",
            where=root,
            remedy=f"Add .txt, .jsonl or .json files, or choose another folder with --{setting.replace('_', '-')}.",
        ) from error
