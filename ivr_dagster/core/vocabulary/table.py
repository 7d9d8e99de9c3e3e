"""The table of replacement candidates: its columns, how it is built, and the remap rules that it contains."""

import numpy as np
import polars as pl

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.scores import unreachable_ids
from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.vocabulary.candidate import Selection
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules, check_rules
from ivr_dagster.core.vocabulary.sacrifice import choose_sacrifices, protected_ids
from ivr_dagster.errors import InputError

# type and description of each column
COLUMNS: dict[str, tuple[type[pl.DataType], str]] = {
    "rank": (pl.Int64, "Position in the selection, the most valuable first"),
    "new_token": (pl.String, "The string that receives the id, in the byte-level alphabet"),
    "new_text": (pl.String, "Its text"),
    "halves": (pl.String, "The two tokens that are merged to it, separated by a space; none for phrases and bytes"),
    "merge_rank": (pl.Int64, "Position of its merge among those of the new tokens"),
    "constituents": (pl.String, "The base tokens it replaces, in order, separated by spaces"),
    "saving": (pl.Int64, "Tokens it saves on the train split"),
    "frequency": (pl.Int64, "Its occurrences on the train split"),
    "heldout_saving": (pl.Float64, "Share of held-out tokens it saves"),
    "sacrificed_id": (pl.Int64, "The id"),
    "sacrificed_token": (pl.String, "The token that loses the id, in the byte-level alphabet"),
    "sacrificed_text": (pl.String, "Its text"),
    "sacrificed_frequency": (pl.Int64, "Its occurrences on the train split"),
    "status": (pl.String, "`new`, or `kept` or `moved` from the previous selection"),
    "sacrificed_cost": (pl.Int64, "Tokens that one occurrence of the sacrificed token takes afterwards"),
}


def candidates_table(
    selection: Selection,
    bpe: ByteLevelBPE,
    frequencies: np.ndarray,
    *,
    heldout: np.ndarray | None = None,
    previous_ids: dict[str, int] | None = None,
) -> pl.DataFrame:
    """Candidates with the ids that they receive, in the selection's order.

    Args:
        selection: candidates, the most valuable first.
        bpe: the base vocabulary, V ids.
        frequencies: occurrences of the base's ids on the train split, int64 [V].
        heldout: what each candidate adds to the share of held-out tokens saved, float64; zeros if not given.
        previous_ids: ids of strings in the previous selection; they are kept unless another token needs them.

    Returns:
        The `COLUMNS`; sacrificed_cost is zero until it is measured.
    """
    candidates = selection.candidates
    previous_ids = previous_ids or {}
    protected = protected_ids(bpe, {i for candidate in candidates for i in candidate.constituents})
    wanted = {previous_ids[c.string] for c in candidates if c.string in previous_ids} - protected
    chosen = choose_sacrifices(
        bpe, frequencies, protected, len(candidates), preferred=wanted | (unreachable_ids(bpe) - protected)
    )
    wanted.intersection_update(chosen)
    kept = {c.string: i for c in candidates if (i := previous_ids.get(c.string)) is not None and i in wanted}
    fresh = (token_id for token_id in chosen if token_id not in wanted)
    ids = [kept[c.string] if c.string in kept else next(fresh) for c in candidates]
    sacrificed = [bpe.strings[i] for i in ids]
    return pl.DataFrame(
        {
            "rank": range(1, len(candidates) + 1),
            "new_token": [c.string for c in candidates],
            "new_text": [text_of(c.string) for c in candidates],
            "halves": [" ".join(c.halves) for c in candidates],
            "merge_rank": [selection.merge_ranks[c.string] for c in candidates],
            "constituents": [" ".join(bpe.strings[i] for i in c.constituents) for c in candidates],
            "saving": [c.saving for c in candidates],
            "frequency": [c.frequency for c in candidates],
            "heldout_saving": np.zeros(len(candidates)) if heldout is None else heldout[: len(candidates)],
            "sacrificed_id": ids,
            "sacrificed_token": sacrificed,
            "sacrificed_text": [text_of(string) for string in sacrificed],
            "sacrificed_frequency": frequencies[ids],
            "status": [
                "kept" if c.string in kept else "moved" if c.string in previous_ids else "new" for c in candidates
            ],
            "sacrificed_cost": np.zeros(len(candidates), dtype=np.int64),
        },
        schema={name: dtype for name, (dtype, _) in COLUMNS.items()},
    )


def rules_from_table(table: pl.DataFrame) -> RemapRules:
    """The remap rules in a table of candidates, in merge order, regardless of the order of its rows."""
    return RemapRules(
        tuple(
            RemapRule(
                id=row["sacrificed_id"],
                sacrificed_token=row["sacrificed_token"],
                new_token=row["new_token"],
                constituents=_tokens(row["constituents"]),
                frequencies={
                    "sacrificed": row["sacrificed_frequency"],
                    "new": row["frequency"],
                    "saving": row["saving"],
                },
                halves=_tokens(row["halves"]),
            )
            for row in table.sort("merge_rank").iter_rows(named=True)
        )
    )


def _tokens(cell: str) -> tuple[str, ...]:
    return tuple(cell.split(" ")) if cell else ()


def fits_base(table: pl.DataFrame, bpe: ByteLevelBPE) -> bool:
    """Whether a table's rules are valid for this base vocabulary."""
    try:
        check_rules(rules_from_table(table), bpe, "replacement_candidates")
    except InputError:
        return False
    return True
