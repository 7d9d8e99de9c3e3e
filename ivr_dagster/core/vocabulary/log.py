"""The selection for people: a one-sentence verdict, the saving by number of new tokens, and a Markdown log."""

from dataclasses import dataclass

import polars as pl

from ivr_dagster.core.tokens.display import markdown_table
from ivr_dagster.core.vocabulary.selection import STEP

LISTED = 40


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Share of held-out tokens saved by the first `new_tokens`, and the contribution of the last hundred of them."""

    new_tokens: int
    heldout: float
    last_hundred: float


def saving_curve(table: pl.DataFrame) -> list[CurvePoint]:
    """The saving at round numbers of new tokens, and at all of them."""
    added, size = table["heldout_saving"].to_numpy(), len(table)
    steps = [n for n in (100, 200, 500, *range(1000, 10_000, 1000), *range(10_000, 100_000, 10_000)) if n < size]
    return [
        CurvePoint(n, float(added[:n].sum()), float(added[max(0, n - STEP) : n].sum()))
        for n in [*steps, *([size] if size else [])]
    ]


def verdict(saving_heldout: float, count: int, floor: float) -> str:
    """Whether the reassignment is worth a fine-tuning, in one sentence.

    Args:
        saving_heldout: share of held-out tokens saved.
        count: number of new tokens.
        floor: the share below which a fine-tuning costs more than shorter sequences gain.
    """
    if saving_heldout < floor:
        return (
            f"Hardly worth it: {count:,} new tokens save {saving_heldout:.1%} of held-out tokens, less than "
            f"{floor:.0%}. Their rows must be learned; fine-tuning the unchanged base model will likely do as well. "
            "--merge-scope across saves more if phrases recur."
        )
    return f"{count:,} new tokens save {saving_heldout:.1%} of held-out tokens."


def selection_log_text(table: pl.DataFrame, saving_floor: float) -> str:
    """Markdown: what was selected, the saving by number of new tokens, what is sacrificed and what that costs."""
    lost = table.filter(pl.col("sacrificed_frequency") > 0)
    kept, moved, new = (int((table["status"] == status).sum()) for status in ("kept", "moved", "new"))
    lines = [
        "# Selection",
        "",
        verdict(float(table["heldout_saving"].sum()), len(table), saving_floor),
        "",
        f"They save {int(table['saving'].sum()):,} tokens on the train split. Each saving is counted where the token "
        "occurs with all of them in use, so savings add up. All figures are of the corpus that the selection was made "
        "on: selection and figures stay until another selection saves noticeably more (`least_gain`).",
        "",
        f"Previous rules: {kept:,} kept with their id, {moved:,} moved to another id. New rules: {new:,}.",
        "",
        f"{len(table) - len(lost):,} of the sacrificed tokens never occur in the train split; {len(lost):,} do, "
        f"{int(lost['sacrificed_frequency'].sum()):,} times in total.",
        "",
        "## Saving by number of new tokens",
        "",
        "| new tokens | held-out tokens saved | by the last hundred |",
        "|---:|---:|---:|",
    ]
    lines += [
        f"| {point.new_tokens:,} | {point.heldout:.2%} | {point.last_hundred:.3%} |" for point in saving_curve(table)
    ]
    columns = {"new token": "new_text", "made of": "constituents", "saves": "saving", "replaces": "sacrificed_text"}
    lines += ["", f"## The first {min(LISTED, len(table))} new tokens", "", _table(table.head(LISTED), columns)]
    if len(lost):
        worst = lost.sort("sacrificed_frequency", descending=True).head(LISTED)
        columns = {
            "sacrificed": "sacrificed_text",
            "occurrences": "sacrificed_frequency",
            "tokens it takes now": "sacrificed_cost",
            "replaced by": "new_text",
            "which saves": "saving",
        }
        lines += ["", "## Sacrificed although used", "", _table(worst, columns)]
    return "\n".join(lines) + "\n"


def _table(rows: pl.DataFrame, columns: dict[str, str]) -> str:
    """A Markdown table of these columns, heading → name."""
    return markdown_table(rows.select(pl.col(name).alias(heading) for heading, name in columns.items()))
