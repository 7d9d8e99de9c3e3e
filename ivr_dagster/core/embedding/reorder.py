"""Moves embedding rows to the ids of the remapped tokenizer, bit for bit; rows of new tokens become zero."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import torch

    from ivr_dagster.core.embedding.extract import Embeddings


def row_sources(base_ids: Mapping[str, int], strings: Sequence[str]) -> list[int]:
    """For every id of the remapped tokenizer, the base id with the same string; -1 for new tokens."""
    return [base_ids.get(string, -1) for string in strings]


def reorder_embeddings(tensors: "Embeddings", sources: Sequence[int]) -> "Embeddings":
    """Tensors with rows at their new ids: kept rows are copied bit for bit, new rows are zero.

    Args:
        tensors: as read by `read_embeddings`, [V', d] with V' >= V. Padding rows beyond V keep their place.
        sources: base id of each of the V new ids, -1 for new tokens.

    Raises:
        InputError: a matrix has fewer rows than the tokenizer has ids.
    """
    import torch

    source = torch.tensor(sources)
    is_kept = source >= 0
    reordered: Embeddings = {}
    for name, rows in tensors.items():
        if len(rows) < len(sources):
            raise InputError(
                f"the tokenizer has {len(sources):,} ids, the model's {name} only {len(rows):,} rows",
                where="model_name",
                remedy="Use the tokenizer that belongs to the model.",
            )
        moved = rows.clone()
        moved[: len(sources)][is_kept] = rows[source[is_kept]]
        moved[: len(sources)][~is_kept] = 0
        reordered[name] = moved
    return reordered


def check_new_ids(sources: Sequence[int], rule_ids: Collection[int]) -> None:
    """Check that the tokenizer's new tokens have exactly the ids of the remap rules.

    Raises:
        InputError: tokenizer and rules belong to different runs.
    """
    found = {token_id for token_id, source in enumerate(sources) if source < 0}
    differing = sorted(found.symmetric_difference(rule_ids))
    if differing:
        side = "the remapped tokenizer but has no rule" if differing[0] in found else "the remap rules only"
        raise InputError(
            f"tokenizer and remap rules disagree on {len(differing):,} ids: {differing[0]} is new in {side}",
            where="remapped_tokenizer_dir, remap_rules_path",
            remedy="Set both to files of the same run, or leave both empty to compute them.",
        )


def kept_rows_equal(base: "Embeddings", other: "Embeddings", sources: Sequence[int]) -> bool:
    """Whether every kept row and every padding row is bitwise the base's."""
    import torch

    source = torch.tensor([*sources, *range(len(sources), len(base["wte"]))])
    target = torch.arange(len(source))[source >= 0]
    return base.keys() == other.keys() and all(
        rows.dtype == other[name].dtype and torch.equal(_bits(other[name][target]), _bits(rows[source[source >= 0]]))
        for name, rows in base.items()
    )


def _bits(rows: "torch.Tensor") -> "torch.Tensor":
    """Raw bytes, so that NaN equals NaN and -0.0 differs from 0.0."""
    import torch

    return rows.contiguous().view(torch.uint8)
