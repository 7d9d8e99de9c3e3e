"""Where the adapted model loses bits: by kind of token, and on the input or the output side.

Each document is cut at the token boundaries that both tokenizers share, so every model has the same pieces of text. A
piece is *kept* or *new* if the remapped tokenizer encodes it as one such token, *unseen* if that token is new and does
not occur in the training text, and *resegmented* if it is several tokens, mostly because one was sacrificed.

Before training, the loss over the base model has two parts. The output side is measured by the base model's states at
the beginning of each piece under the output rows of the initialized model; what is left is the input side: states that
change because new tokens are read in place of their constituents. The base has no state inside its own tokens, so later
tokens of a resegmented piece count on the output side, with the loss of the initialized model.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.embedding.extract import Embeddings
from ivr_dagster.core.scoring.bits_per_byte import IGNORED, BitsPerByte

# kind of text → what it is, in the order of tables
KINDS = {
    "kept": "kept tokens",
    "new": "new tokens",
    "unseen": "new tokens that the training text does not contain",
    "resegmented": "several tokens, mostly because one was sacrificed",
}


# the base model with the output rows of the initialized model, next to the variants
OUTPUT_SIDE = "output_side"


@dataclass(frozen=True)
class Pieces:
    """The pieces of one document between boundaries that two token sequences share.

    Attributes:
        base, own: int64 `[P]`, index of each piece's first token in the two sequences.
        sizes: int64 `[P]`, UTF-8 bytes.
        is_single: bool `[P]`, whether the second sequence has one token.
    """

    base: NDArray[np.int64]
    own: NDArray[np.int64]
    sizes: NDArray[np.int64]
    is_single: NDArray[np.bool_]


@dataclass(frozen=True)
class DiagnosedText:
    """Held-out text of one kind.

    Attributes:
        bytes: UTF-8 bytes.
        bits: variant, or `OUTPUT_SIDE` → negative log-likelihood in bits.
    """

    bytes: int
    bits: Mapping[str, float]


def split_at_shared_boundaries(base_bytes: NDArray[np.int64], own_bytes: NDArray[np.int64]) -> Pieces:
    """Cut a document where a token ends in both sequences.

    Args:
        base_bytes, own_bytes: int64 `[n]` and `[m]`, UTF-8 bytes of the tokens, n and m > 0.
    """
    base_ends, own_ends = np.cumsum(base_bytes), np.cumsum(own_bytes)
    shared = np.intersect1d(base_ends[:-1], own_ends[:-1])
    base = np.concatenate([[0], np.searchsorted(base_ends, shared) + 1])
    own = np.concatenate([[0], np.searchsorted(own_ends, shared) + 1])
    sizes = np.diff(np.concatenate([[0], shared, [own_ends[-1]]]))
    return Pieces(base, own, sizes, np.diff(np.append(own, len(own_bytes))) == 1)


@contextmanager
def output_rows(model: Any, embeddings: Embeddings) -> Iterator[None]:
    """Give `model` the output rows of another model, whose embeddings these are; its input rows stay."""
    import torch

    head = model.get_output_embeddings()
    given = {"weight": embeddings.get("lm_head", embeddings["wte"])}
    if "lm_head_bias" in embeddings:
        given["bias"] = embeddings["lm_head_bias"]
    before = {name: getattr(head, name) for name in given}
    try:
        for name, rows in given.items():
            parameter = rows.to(device=before[name].device, dtype=before[name].dtype)
            setattr(head, name, torch.nn.Parameter(parameter, requires_grad=False))
        yield
    finally:
        for name, parameter in before.items():
            parameter.data = parameter.data.to(getattr(head, name).device)  # the model may have been moved
            setattr(head, name, parameter)


class Diagnosis:
    """The pieces of the held-out text, to which the losses of all variants are assigned.

    It leaves out documents that the base tokenizer does not encode exactly, since it drops bytes that it has no token
    for.

    Args:
        base, initialized: the scores of the base model and of the initialized one.
        base_bytes, own_bytes: int64 `[≥ V]`, UTF-8 bytes of the tokens of both tokenizers.
        new_ids: ids of new tokens.
        unseen_ids: those of them that the training text does not contain.
    """

    def __init__(
        self,
        base: BitsPerByte,
        initialized: BitsPerByte,
        base_bytes: NDArray[np.int64],
        own_bytes: NDArray[np.int64],
        new_ids: Collection[int],
        unseen_ids: Collection[int],
    ) -> None:
        sizes = [
            (int(base_bytes[one].sum()), int(own_bytes[two].sum()))
            for one, two in zip(base.ids, initialized.ids, strict=True)
        ]
        self._pieces = {
            n: split_at_shared_boundaries(base_bytes[base.ids[n]], own_bytes[initialized.ids[n]])
            for n, (size, own_size) in enumerate(sizes)
            if size == own_size > 0
        }
        self._base, self._initialized = base, initialized
        kind_of = np.zeros(initialized.vocabulary, dtype=np.int64)
        kind_of[list(new_ids)] = 1
        kind_of[list(unseen_ids)] = 2
        kinds = [
            np.where(pieces.is_single, kind_of[initialized.ids[n][pieces.own]], 3) for n, pieces in self._pieces.items()
        ]
        self._kinds = np.concatenate(kinds) if kinds else np.zeros(0, dtype=np.int64)

    def targets(self) -> list[NDArray[np.int64]]:
        """For each token of the base tokenizer, the remapped one's token that begins there, or `IGNORED`."""
        targets = [np.full(len(ids), IGNORED) for ids in self._base.ids]
        for n, pieces in self._pieces.items():
            targets[n][pieces.base] = self._initialized.ids[n][pieces.own]
        return targets

    def result(self, scores: Mapping[str, BitsPerByte], output_side: BitsPerByte) -> dict[str, DiagnosedText]:
        """The bits of every kind of text.

        Args:
            scores: variant → its score; those with other ids than the base and the initialized model are left out.
            output_side: the base model's score for :meth:`targets` under the output rows of the initialized model.
        """
        if not self._pieces:
            return {}
        columns: dict[str, NDArray[np.float64]] = {}
        for name, score in scores.items():
            if _have_same_ids(score, self._base):
                columns[name] = self._by_piece(score.losses, is_base=True)
            elif _have_same_ids(score, self._initialized):
                columns[name] = self._by_piece(score.losses)
        # later tokens of a piece begin inside a token of the base, where the base has no state
        inner = [losses.copy() for losses in self._initialized.losses]
        for n, pieces in self._pieces.items():
            inner[n][pieces.own] = output_side.losses[n][pieces.base]
        columns[OUTPUT_SIDE] = self._by_piece(inner)
        sizes = np.concatenate([pieces.sizes for pieces in self._pieces.values()])
        return {
            name: DiagnosedText(
                int(sizes[chosen].sum()),
                {variant: float(nats[chosen].sum() / math.log(2)) for variant, nats in columns.items()},
            )
            for kind, name in enumerate(KINDS)
            if (chosen := self._kinds == kind).any()
        }

    def _by_piece(self, losses: Sequence[NDArray[np.float64]], *, is_base: bool = False) -> NDArray[np.float64]:
        """Nats of every piece, float64 `[P]` over all documents."""
        return np.concatenate(
            [np.add.reduceat(losses[n], pieces.base if is_base else pieces.own) for n, pieces in self._pieces.items()]
        )


def _have_same_ids(score: BitsPerByte, other: BitsPerByte) -> bool:
    return all(map(np.array_equal, score.ids, other.ids))
