"""The selection as a table and as a log for people; the rules that follow from the table."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.vocabulary.candidates import Selection
from ivr_dagster.core.vocabulary.remap import RemapRule, RemapRules
from ivr_dagster.core.vocabulary.sacrifice import choose_sacrifices, protected_ids

LISTED = 40


def candidates_table(selection: Selection, bpe: ByteLevelBPE, frequencies: np.ndarray) -> pl.DataFrame:
    """Candidates with the ids they are to get, the best first.

    Args:
        selection: candidates by falling saving.
        bpe: the base vocabulary, V ids.
        frequencies: occurrences of the base's ids on the train split, int64 [V].

    Returns:
        Columns rank, new_token, new_text, constituents (strings, separated by spaces, which no byte-level string
        holds), saving and frequency (tokens, occurrences on the train split), sacrificed_id, sacrificed_token,
        sacrificed_text, sacrificed_frequency.
    """
    candidates = selection.candidates
    protected = protected_ids(bpe, {i for candidate in candidates for i in candidate.constituents})
    sacrifices = choose_sacrifices(bpe, frequencies, protected, len(candidates))
    given_up = [bpe.strings[i] for i in sacrifices]
    return pl.DataFrame(
        {
            "rank": pl.Series(range(1, len(candidates) + 1), dtype=pl.Int64),
            "new_token": pl.Series([c.string for c in candidates], dtype=pl.String),
            "new_text": pl.Series([text_of(c.string) for c in candidates], dtype=pl.String),
            "constituents": pl.Series(
                [" ".join(bpe.strings[i] for i in c.constituents) for c in candidates], dtype=pl.String
            ),
            "saving": pl.Series([c.saving for c in candidates], dtype=pl.Int64),
            "frequency": pl.Series([c.frequency for c in candidates], dtype=pl.Int64),
            "sacrificed_id": pl.Series(sacrifices, dtype=pl.Int64),
            "sacrificed_token": pl.Series(given_up, dtype=pl.String),
            "sacrificed_text": pl.Series([text_of(string) for string in given_up], dtype=pl.String),
            "sacrificed_frequency": pl.Series(frequencies[sacrifices], dtype=pl.Int64),
        }
    )


def rules_from_table(table: pl.DataFrame) -> RemapRules:
    """The remap rules that a table of candidates asks for."""
    return RemapRules(
        tuple(
            RemapRule(
                id=row["sacrificed_id"],
                sacrificed_token=row["sacrificed_token"],
                new_token=row["new_token"],
                constituents=tuple(row["constituents"].split(" ")),
                frequencies={
                    "sacrificed": row["sacrificed_frequency"],
                    "new": row["frequency"],
                    "saving": row["saving"],
                },
            )
            for row in table.iter_rows(named=True)
        )
    )


def selection_log_text(table: pl.DataFrame, train_tokens: int) -> str:
    """Markdown: what was chosen and why, the saving by hundreds, what is given up and what that text costs."""
    saving = table["saving"].to_numpy()
    total = int(saving.sum())
    lost = table.filter(pl.col("sacrificed_frequency") > 0)
    lines = [
        "# Selection",
        "",
        f"{len(table):,} new tokens save {total:,} of {train_tokens:,} tokens of the train split "
        f"({total / max(train_tokens, 1):.1%}). Every saving is counted where "
        "the token stands once all are in use, so that they add up.",
        "",
        f"{len(table) - len(lost):,} of the sacrificed tokens never occur in the train split; {len(lost):,} do, "
        f"{int(lost['sacrificed_frequency'].sum()):,} times in all.",
        "",
        "## Saving by number of new tokens",
        "",
        "| new tokens | saved tokens | share of train tokens | the last hundred saved |",
        "|---:|---:|---:|---:|",
    ]
    for count in _milestones(len(table)):
        last = int(saving[max(0, count - 100) : count].sum())
        upto = int(saving[:count].sum())
        lines.append(f"| {count:,} | {upto:,} | {upto / max(train_tokens, 1):.2%} | {last:,} |")
    columns = [
        ("new token", "new_text"),
        ("made of", "constituents"),
        ("saves", "saving"),
        ("stands for id of", "sacrificed_text"),
    ]
    lines += ["", f"## The first {min(LISTED, len(table))} new tokens", "", *_rows(table.head(LISTED), columns)]
    if len(lost):
        worst = lost.sort("sacrificed_frequency", descending=True).head(LISTED)
        columns = [
            ("given up", "sacrificed_text"),
            ("occurrences", "sacrificed_frequency"),
            ("for", "new_text"),
            ("which saves", "saving"),
        ]
        lines += ["", "## Given up although the domain uses them", "", *_rows(worst, columns)]
    return "\n".join(lines) + "\n"


def _milestones(size: int) -> list[int]:
    steps = [n for n in (100, 200, 500, *range(1000, 10_000, 1000), *range(10_000, 100_000, 10_000)) if n < size]
    return [*steps, size] if size else []


def _rows(table: pl.DataFrame, columns: list[tuple[str, str]]) -> Iterator[str]:
    yield "| " + " | ".join(title for title, _ in columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in table.iter_rows(named=True):
        cells = (row[name] for _, name in columns)
        shown = (f"`{cell!r}`".replace("|", "\\|") if isinstance(cell, str) else f"{cell:,}" for cell in cells)
        yield "| " + " | ".join(shown) + " |"
