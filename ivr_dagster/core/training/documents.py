"""Which documents training reads: a part of the train split, others to validate on, and general text to mix in."""

from collections.abc import Sequence
from dataclasses import dataclass

from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.cleaning import Normalization
from ivr_dagster.core.corpus.other_text import select_other_texts
from ivr_dagster.core.corpus.splits import SPLITS
from ivr_dagster.core.corpus.subset import document_sizes, ids_within, split_validation
from ivr_dagster.settings.groups import TrainingSettings


@dataclass(frozen=True)
class DocumentSplit:
    """Ids of documents, and their size in UTF-8 bytes."""

    train: set[str]
    validation: set[str]
    train_bytes: int
    validation_bytes: int


def split_train_documents(corpus: CleanedCorpus, known: set[str], training: TrainingSettings) -> DocumentSplit:
    """Choose documents to train on and to validate on.

    Args:
        corpus: its train split is divided.
        known: ids of the documents to choose from.
        training: says how many bytes to train and to validate on.
    """
    sizes = document_sizes((i, text) for i, text in corpus.documents("train") if i in known)
    others, validation = split_validation(sizes, training.validation_bytes, training.train_bytes)
    train, train_bytes = ids_within(others, training.train_bytes)
    return DocumentSplit(train, set(validation), train_bytes, sum(validation.values()))


def select_general_texts(
    corpus: CleanedCorpus,
    documents: Sequence[str],
    general_share: float,
    size: int,
    *,
    normalization: Normalization = "NFC",
    reserved: int = 0,
) -> list[str]:
    """General text that makes up `general_share` of all bytes next to `size` bytes of the corpus.

    Args:
        corpus: none of its documents is selected.
        documents: general text.
        general_share: share of the bytes, below 1.
        size: UTF-8 bytes of the corpus.
        normalization: the corpus's normalization.
        reserved: bytes that the evaluation measures forgetting on, from the same documents.
    """
    known = {document_id for split in SPLITS for document_id in corpus.ids(split)}
    measured: set[str] = set()
    if reserved:
        selected = select_other_texts(documents, known, reserved, normalization=normalization, from_the_end=True)
        measured = set(selected)
    max_bytes = max(1, round(size * general_share / (1 - general_share)))
    texts = select_other_texts(documents, known, max_bytes, normalization=normalization)
    return [text for text in texts if text not in measured]
