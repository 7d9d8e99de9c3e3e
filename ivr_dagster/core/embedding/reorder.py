"""Kept rows to where their string now stands; rows of new tokens left empty."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import torch

    from ivr_dagster.core.embedding.extract import Embeddings


def row_sources(base_ids: Mapping[str, int], strings: Sequence[str]) -> list[int]:
    """For every id of the new tokenizer the base id that had its string, -1 for new tokens."""
    return [base_ids.get(string, -1) for string in strings]


def reorder_embeddings(tensors: "Embeddings", sources: Sequence[int]) -> "Embeddings":
    """Rows by their new id: kept rows are copied bit for bit, new rows are zero.

    Args:
        tensors: as of `read_embeddings`, first dimension V' >= V. Rows beyond the tokenizer's V (padding of the
            matrix) stay where they are.
        sources: base id of each of the V new ids, -1 for new tokens.

    Raises:
        InputError: the model has fewer rows than the tokenizer has ids.
    """
    return {name: _reorder(name, rows, sources) for name, rows in tensors.items()}


def _reorder(name: str, rows: "torch.Tensor", sources: Sequence[int]) -> "torch.Tensor":
    import torch

    if len(rows) < len(sources):
        raise InputError(
            f"the tokenizer has {len(sources):,} ids, the model's {name} only {len(rows):,} rows",
            where="model_name",
            remedy="Tokenizer and model must belong together.",
        )
    source = torch.tensor(sources)
    reordered = rows.clone()
    kept = source >= 0
    target = torch.arange(len(sources))
    reordered[target[kept]] = rows[source[kept]]
    reordered[target[~kept]] = 0
    return reordered


def check_new_ids(sources: Sequence[int], new_ids: Collection[int]) -> None:
    """See that the ids whose string is new in the tokenizer are those that the remap rules give away.

    Raises:
        InputError: they are not, because tokenizer and rules are not of one making.
    """
    found = {n for n, source in enumerate(sources) if source < 0}
    differing = sorted(found.symmetric_difference(new_ids))
    if differing:
        raise InputError(
            f"tokenizer and remap rules disagree on {len(differing):,} ids: {differing[0]} is new in "
            + ("the remapped tokenizer, and no rule gives it away" if differing[0] in found else "the rules alone"),
            where="remapped_tokenizer_dir, remap_rules_path",
            remedy="Bring both of one making, or neither: then they are made anew.",
        )


def kept_rows_equal(base: "Embeddings", other: "Embeddings", sources: Sequence[int]) -> bool:
    """Whether every kept row, and every row beyond the tokenizer, is bitwise the base's."""
    import torch

    source = torch.tensor([*sources, *range(len(sources), len(base["wte"]))])
    target = torch.arange(len(source))[source >= 0]
    return base.keys() == other.keys() and all(
        rows.dtype == other[name].dtype and torch.equal(_bits(other[name][target]), _bits(rows[source[source >= 0]]))
        for name, rows in base.items()
    )


def _bits(rows: "torch.Tensor") -> "torch.Tensor":
    import torch

    return rows.contiguous().view(torch.uint8)  # NaN and -0.0 compared as what they are
