"""First values for the rows of new tokens.

Each strategy looks at the base's rows only, and treats input and output embeddings alike. The mean of the
constituents is Fast Vocabulary Transfer's (Gee et al. 2022).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ivr_dagster.core.errors import InputError

if TYPE_CHECKING:
    import torch

    from ivr_dagster.core.embedding.extract import Embeddings

STRATEGIES: dict[str, str] = {
    "constituents": "mean of the rows of the base tokens that the new token replaces",
    "mean": "mean of all kept rows",
    "random": "drawn from a normal distribution with mean and standard deviation of the kept rows, by column",
    "zeros": "zeros",
}


def initialize_embeddings(
    reordered: "Embeddings",
    base: "Embeddings",
    constituents: Mapping[int, Sequence[int]],
    *,
    strategy: str = "constituents",
    seed: int = 42,
) -> "Embeddings":
    """`reordered` with the rows of new tokens filled in; all other rows bit for bit as they were.

    Args:
        reordered: tensors by new id, [V, d] (or [V] for a bias).
        base: the base model's tensors by base id.
        constituents: base ids of the constituents, by id of the new token.
        strategy: a key of `STRATEGIES`.
        seed: for `random`.

    Raises:
        InputError: an unknown strategy.
    """
    import torch

    if strategy not in STRATEGIES:
        raise InputError(
            f"no initialisation strategy {strategy!r}",
            where="init_strategy",
            remedy=f"Choose one of {', '.join(STRATEGIES)}.",
        )
    generator = torch.Generator().manual_seed(seed)
    filled: Embeddings = {}
    for name, rows in reordered.items():
        result = rows.clone()
        new = torch.tensor(sorted(constituents), dtype=torch.long)
        if len(new):
            kept = torch.ones(len(rows), dtype=torch.bool)
            kept[new] = False
            values = _new_rows(
                strategy, base[name].float(), rows[kept].float(), [constituents[int(i)] for i in new], generator
            )
            result[new] = values.to(rows.dtype)
        filled[name] = result
    return filled


def _new_rows(
    strategy: str, base: "torch.Tensor", kept: "torch.Tensor", parts: list[Sequence[int]], generator: "torch.Generator"
) -> "torch.Tensor":
    import torch

    shape = (len(parts), *base.shape[1:])
    if strategy == "constituents":
        # a byte that the base has no token for has no constituents
        return torch.stack([base[list(ids)].mean(dim=0) if ids else kept.mean(dim=0) for ids in parts])
    if strategy == "mean":
        return kept.mean(dim=0).expand(shape)
    if strategy == "random":
        return kept.mean(dim=0) + kept.std(dim=0) * torch.randn(shape, generator=generator)
    return torch.zeros(shape)
