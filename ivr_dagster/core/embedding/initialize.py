"""Initial values for the rows of new tokens.

A strategy sees only the base model's rows and treats input and output embeddings alike. `constituents` is Fast
Vocabulary Transfer (Gee et al. 2022). Held-out bits per byte of SmolLM2-135M before training, 4,000 new tokens, one
seed (base model: 1.566 and 1.207; differences below 0.05 are noise; `python -m benchmarks.quality start`):

=====================  =============  ==========
strategy               Korean manual  Linux docs
=====================  =============  ==========
constituents                   1.775       1.310
first_last                     1.841       1.321
constituents_last              1.927       1.331
constituents_first             1.956       1.323
mean                           2.767       1.473
zeros                          4.715       1.667
=====================  =============  ==========
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import torch

    from ivr_dagster.core.embedding.extract import Embeddings

# kept rows per float64 chunk when computing statistics
CHUNK = 4096


class KeptRows:
    """Statistics of the kept rows of one tensor, computed on first use.

    Args:
        rows: one tensor by new id, [V', d] or [V'].
        ids: ids of kept tokens, without padding.
    """

    def __init__(self, rows: "torch.Tensor", ids: "torch.Tensor") -> None:
        self._rows, self._ids = rows, ids

    @cached_property
    def mean(self) -> "torch.Tensor":
        """Column means, float32 [d], accumulated in float64."""
        return (self._sum(lambda rows: rows) / len(self._ids)).float()

    @cached_property
    def std(self) -> "torch.Tensor":
        """Column sample standard deviations (n - 1), float32 [d], accumulated in float64."""
        mean = self.mean.double()
        squares = self._sum(lambda rows: (rows - mean) ** 2)
        return (squares / max(len(self._ids) - 1, 1)).sqrt().float()

    def _sum(self, transform: "Callable[[torch.Tensor], torch.Tensor]") -> "torch.Tensor":
        import torch

        total = torch.zeros(self._rows.shape[1:], dtype=torch.float64)
        for ids in self._ids.split(CHUNK):
            total += transform(self._rows[ids].double()).sum(dim=0)
        return total


# (base rows [V', d], kept rows, constituents of n new tokens, generator) -> float32 [n, d]
InitialRows = Callable[["torch.Tensor", KeptRows, Sequence[Sequence[int]], "torch.Generator"], "torch.Tensor"]


@dataclass(frozen=True)
class Strategy:
    """An initialization strategy: a description and a function that returns the rows of n new tokens."""

    description: str
    initial_rows: InitialRows


def weighted_mean(weights: Callable[[int], Sequence[float]]) -> InitialRows:
    """Rows that are weighted means of their constituents' rows; the mean of the kept rows without constituents.

    Args:
        weights: number of constituents → their weights, in order, not normalized.
    """

    def initial_rows(
        base: "torch.Tensor", kept: KeptRows, constituents: Sequence[Sequence[int]], generator: "torch.Generator"
    ) -> "torch.Tensor":
        import torch

        def mean(ids: Sequence[int]) -> "torch.Tensor":
            by_place = torch.tensor(weights(len(ids))).reshape(-1, *[1] * (base.dim() - 1))
            return (base[list(ids)].float() * by_place).sum(dim=0) / by_place.sum()

        return torch.stack([mean(ids) if ids else kept.mean for ids in constituents])

    return initial_rows


def mean_of_kept(
    base: "torch.Tensor", kept: KeptRows, constituents: Sequence[Sequence[int]], generator: "torch.Generator"
) -> "torch.Tensor":
    """The mean of all kept rows, for every new token."""
    return kept.mean.expand(len(constituents), *base.shape[1:])


def normal_like_kept(
    base: "torch.Tensor", kept: KeptRows, constituents: Sequence[Sequence[int]], generator: "torch.Generator"
) -> "torch.Tensor":
    """Independent normal samples with the column means and standard deviations of the kept rows."""
    import torch

    return kept.mean + kept.std * torch.randn((len(constituents), *base.shape[1:]), generator=generator)


def zeros(
    base: "torch.Tensor", kept: KeptRows, constituents: Sequence[Sequence[int]], generator: "torch.Generator"
) -> "torch.Tensor":
    """Zeros."""
    import torch

    return torch.zeros((len(constituents), *base.shape[1:]))


STRATEGIES: dict[str, Strategy] = {
    "constituents": Strategy(
        "mean of the rows of the base tokens that the new token replaces", weighted_mean(lambda count: [1.0] * count)
    ),
    "constituents_first": Strategy(
        "mean of the constituents' rows, weights falling linearly from the first to the last",
        weighted_mean(lambda count: [float(count - n) for n in range(count)]),
    ),
    "constituents_last": Strategy(
        "mean of the constituents' rows, weights rising linearly from the first to the last",
        weighted_mean(lambda count: [float(n + 1) for n in range(count)]),
    ),
    "first_last": Strategy(
        "mean of the first and the last constituent's rows",
        weighted_mean(lambda count: [float(n in (0, count - 1)) for n in range(count)]),
    ),
    "mean": Strategy("mean of all kept rows", mean_of_kept),
    "random": Strategy(
        "normal samples with the column means and standard deviations of the kept rows", normal_like_kept
    ),
    "zeros": Strategy("zeros", zeros),
}


def initialize_embeddings(
    reordered: "Embeddings",
    base: "Embeddings",
    constituents: Mapping[int, Sequence[int]],
    *,
    strategy: str = "constituents",
    seed: int = 42,
    vocabulary_size: int | None = None,
) -> "Embeddings":
    """A copy of `reordered` with the rows of new tokens filled in; all other rows stay bit for bit the same.

    Args:
        reordered: tensors by new id, [V', d], or [V'] for a bias.
        base: the base model's tensors by base id.
        constituents: id of each new token → base ids of its constituents.
        strategy: a key of `STRATEGIES`.
        seed: for `random`.
        vocabulary_size: V <= V', the tokenizer's ids. Padding rows beyond are excluded from statistics.

    Raises:
        InputError: unknown strategy.
    """
    import torch

    if strategy not in STRATEGIES:
        raise InputError(
            f"unknown initialization strategy {strategy!r}",
            where="init_strategy",
            remedy=f"Choose one of {', '.join(STRATEGIES)}.",
        )
    generator = torch.Generator().manual_seed(seed)
    new_ids = sorted(constituents)
    parts = [constituents[token_id] for token_id in new_ids]
    filled: Embeddings = {name: rows.clone() for name, rows in reordered.items()}
    for name, rows in reordered.items() if new_ids else ():
        is_kept = torch.ones(len(rows), dtype=torch.bool)
        is_kept[new_ids] = False
        is_kept[vocabulary_size or len(rows) :] = False
        kept = KeptRows(rows, is_kept.nonzero().flatten())
        values = STRATEGIES[strategy].initial_rows(base[name], kept, parts, generator)
        filled[name][new_ids] = values.to(rows.dtype)
    return filled
