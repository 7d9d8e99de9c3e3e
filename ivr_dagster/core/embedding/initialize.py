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
    """Column statistics of the kept rows of one tensor, float32 [d], accumulated in float64 on first use.

    Args:
        rows: one tensor by new id, [V', d] or [V'].
        ids: ids of kept tokens, without padding.
    """

    def __init__(self, rows: "torch.Tensor", ids: "torch.Tensor") -> None:
        self._rows, self._ids = rows, ids

    @cached_property
    def mean(self) -> "torch.Tensor":
        return (self._sum(lambda rows: rows) / len(self._ids)).float()

    @cached_property
    def std(self) -> "torch.Tensor":
        """Sample standard deviations (n - 1)."""
        mean = self.mean.double()
        squares = self._sum(lambda rows: (rows - mean) ** 2)
        return (squares / max(len(self._ids) - 1, 1)).sqrt().float()

    def _sum(self, transform: "Callable[[torch.Tensor], torch.Tensor]") -> "torch.Tensor":
        import torch

        total = torch.zeros(self._rows.shape[1:], dtype=torch.float64)
        for ids in self._ids.split(CHUNK):
            total += transform(self._rows[ids].double()).sum(dim=0)
        return total


@dataclass(frozen=True)
class NewTokens:
    """What a strategy may use for one tensor.

    Attributes:
        base: the base model's rows, [V', d], in their own dtype.
        kept: statistics of kept rows.
        constituents: base ids of the constituents of each of n new tokens.
        generator: for random rows.
    """

    base: "torch.Tensor"
    kept: KeptRows
    constituents: Sequence[Sequence[int]]
    generator: "torch.Generator"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the new rows, [n, d]."""
        return (len(self.constituents), *self.base.shape[1:])


@dataclass(frozen=True)
class Strategy:
    """An initialization strategy: its description, and a function that returns the new rows, float32 [n, d]."""

    description: str
    initial_rows: "Callable[[NewTokens], torch.Tensor]"


def weighted_mean(weights: Callable[[int], Sequence[float]]) -> "Callable[[NewTokens], torch.Tensor]":
    """Weighted means of the constituents' rows, or the mean of the kept rows for a token without constituents.

    Args:
        weights: number of constituents → their weights, in order, not normalized.
    """

    def initial_rows(new: NewTokens) -> "torch.Tensor":
        import torch

        def mean(ids: Sequence[int]) -> "torch.Tensor":
            by_place = torch.tensor(weights(len(ids))).reshape(-1, *[1] * (new.base.dim() - 1))
            return (new.base[list(ids)].float() * by_place).sum(dim=0) / by_place.sum()

        return torch.stack([mean(ids) if ids else new.kept.mean for ids in new.constituents])

    return initial_rows


def normal_like_kept(new: NewTokens) -> "torch.Tensor":
    """Independent normal samples with the column means and standard deviations of the kept rows."""
    import torch

    return new.kept.mean + new.kept.std * torch.randn(new.shape, generator=new.generator)


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
    "mean": Strategy("mean of all kept rows", lambda new: new.kept.mean.expand(new.shape)),
    "random": Strategy(
        "normal samples with the column means and standard deviations of the kept rows", normal_like_kept
    ),
    "zeros": Strategy("zeros", lambda new: new.base.new_zeros(new.shape)),
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
        values = STRATEGIES[strategy].initial_rows(NewTokens(base[name], kept, parts, generator))
        filled[name][new_ids] = values.to(rows.dtype)
    return filled
