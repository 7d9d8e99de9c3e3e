"""The selection as a whole: candidates, the ids they get, what is given up, and a log of it for people.

The rules follow from the table alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.lengths import cut_texts
from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.vocabulary.candidate import Guards, Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates, order_by_worth, reachable
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules, check_rules
from ivr_dagster.core.vocabulary.sacrifice import choose_sacrifices, protected_ids
from ivr_dagster.errors import InputError

LISTED = 40
STEP = 100  # new tokens; the grain in which the saving of the next ones is looked at
# where `auto` stops at the latest: more rows than can be learned in a fine-tuning of some megabytes
AUTO_MOST = 10_000


@dataclass(frozen=True)
class Plan:
    """What is to be reassigned.

    Attributes:
        table: see :func:`candidates_table`.
        train_tokens: tokens of the train split under the base tokenizer.
        kept, moved, dropped: rules of before that stay, whose new token gets another id, that are gone.
        foregone: where the selection in force stays, the share of held-out tokens that the best one now would save
            beyond it; None where this is a new selection.
        heldout_now: what the selection in force saves of the held-out split now; its table's figures are of the corpus
            that it was made on.
    """

    table: pl.DataFrame
    train_tokens: int
    kept: int = 0
    moved: int = 0
    dropped: int = 0
    foregone: float | None = None
    heldout_now: float | None = None

    @property
    def saving_train(self) -> float | None:
        """Share of the train split's tokens saved; not known where a selection in force stays."""
        if self.foregone is not None:
            return None
        return float(self.table["saving"].sum()) / max(self.train_tokens, 1)

    @property
    def saving_heldout(self) -> float:
        """Share of the held-out split's tokens saved."""
        return float(self.table["heldout_saving"].sum()) if self.heldout_now is None else self.heldout_now


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Share of held-out tokens saved by the first `new_tokens`, and what the last hundred of them add to it."""

    new_tokens: int
    heldout: float
    last_hundred: float


def saving_curve(table: pl.DataFrame) -> list[CurvePoint]:
    """The saving at round numbers of new tokens, and at all of them."""
    added = table["heldout_saving"].to_numpy()
    return [
        CurvePoint(n, float(added[:n].sum()), float(added[max(0, n - STEP) : n].sum())) for n in _milestones(len(table))
    ]


def plan_selection(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    counts: PretokenCounts,
    frequencies: np.ndarray,
    texts: Iterable[str],
    heldout: Sequence[str],
    *,
    budget: int | None,
    least_saving: float = 0.001,
    guards: Guards = Guards(),  # noqa: B008 (frozen)
    across: bool = False,
    most_phrases: int | None = None,
    before: RemapRules | None = None,
    in_force: pl.DataFrame | None = None,
    least_gain: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Choose new tokens and the ids they get.

    A selection in force stays as it is, figures too, while the best one now would save hardly more: another
    vocabulary is another model to train.

    Args:
        base, bpe: the base tokenizer and its vocabulary of V ids.
        counts: pre-token counts of the train split.
        frequencies: occurrences of the base's ids there, int64 [V].
        texts: the train split; read for phrases only.
        heldout: the held-out split.
        budget: how many at most; None for as many as pay, up to `AUTO_MOST`.
        least_saving: share of held-out tokens that the next hundred must save where `budget` is None.
        guards, across, most_phrases, progress: as of :func:`choose_candidates`.
        before: rules in force, which stay where they are still worth it; rules of another base are passed over.
        in_force: their table, if it was made by these settings.
        least_gain: share of held-out tokens that another selection must save beyond the one in force.

    Raises:
        InputError: more new tokens are asked for than ids may be given away.
    """
    protected = protected_ids(bpe)
    free = bpe.size - len(protected)
    if budget is not None and budget > free:
        raise InputError(
            f"{budget:,} new tokens were asked for, only {free:,} of {bpe.size:,} ids may be given away",
            where="max_candidates",
            remedy=f"Set --max-candidates well below {free}.",
        )
    ids_before: dict[int, RemapRule] = {
        rule.id: rule
        for rule in before or ()
        if 0 <= rule.id < bpe.size and bpe.strings[rule.id] == rule.sacrificed_token
    }
    rules = list(ids_before.values())
    selection = choose_candidates(
        base,
        bpe,
        counts,
        texts,
        budget=min(AUTO_MOST, free // 2) if budget is None else budget,
        guards=guards,
        across=across,
        most_phrases=most_phrases,
        kept=[rule.new_token for rule in rules],
        progress=progress,
    )
    selection = replace(selection, candidates=reachable(base, bpe, selection.candidates))
    cut = cut_texts(heldout, base)
    ordered, shares = order_by_worth(base, bpe, selection, counts, cut)
    if budget is None:
        fixed = sum(not candidate.constituents for candidate in ordered)  # bytes without a token save nothing
        ordered = ordered[: fixed + pays_up_to(shares[fixed:], least_saving)]
        in_use = {i for candidate in ordered for i in candidate.constituents}
        ordered = ordered[: free - len(in_use - protected)]
    selection = Selection(ordered, selection.tokens_before)
    ids = {rule.new_token: rule.id for rule in rules}
    table = candidates_table(selection, bpe, frequencies, heldout=shares, ids_before=ids)
    remapped = remap_tokenizer(base, bpe, rules_from_table(table)).tokenizer
    costs = [len(remapped.model.tokenize(string)) for string in table["sacrificed_token"]]
    # measured with the candidates beside the vocabulary; what goes with the ids they get is borne by all alike
    real = cut.saving(remapped)
    table = table.with_columns(
        pl.col("heldout_saving") + (real - float(table["heldout_saving"].sum())) / max(len(table), 1),
        sacrificed_cost=pl.Series(costs, dtype=pl.Int64),
    )
    if in_force is not None and _fits(in_force, bpe):
        old = remap_tokenizer(base, bpe, rules_from_table(in_force)).tokenizer
        saving = cut.saving(old)
        if real - saving < least_gain:
            return Plan(
                in_force, selection.tokens_before, kept=len(in_force), foregone=real - saving, heldout_now=saving
            )
    status = dict(table["status"].value_counts().iter_rows())
    kept, moved = int(status.get("kept", 0)), int(status.get("moved", 0))
    return Plan(table, selection.tokens_before, kept, moved, len(before or ()) - kept - moved)


def _fits(table: pl.DataFrame, bpe: ByteLevelBPE) -> bool:
    """Whether a table's rules are rules of this base tokenizer."""
    try:
        check_rules(rules_from_table(table), bpe, "replacement_candidates")
    except InputError:
        return False
    return True


def pays_up_to(shares: np.ndarray, least: float) -> int:
    """How many candidates to take: up to the hundred that adds less than `least` to the held-out saving.

    Args:
        shares: what each candidate adds, in order.
        least: a share of held-out tokens.
    """
    for start in range(0, len(shares), STEP):
        hundred = shares[start : start + STEP]
        if hundred.sum() < least * len(hundred) / STEP:
            return start
    return len(shares)


def candidates_table(
    selection: Selection,
    bpe: ByteLevelBPE,
    frequencies: np.ndarray,
    *,
    heldout: np.ndarray | None = None,
    ids_before: dict[str, int] | None = None,
) -> pl.DataFrame:
    """Candidates with the ids they are to get, in the selection's order.

    Args:
        selection: candidates, the most worth having first.
        bpe: the base vocabulary, V ids.
        frequencies: occurrences of the base's ids on the train split, int64 [V].
        heldout: what each candidate adds to the share of held-out tokens saved, float64; zeros if not given.
        ids_before: ids of strings that had one; they keep it unless it has become a constituent's.

    Returns:
        Columns rank, new_token, new_text, constituents (strings, separated by spaces, which no byte-level string
        holds), saving and frequency (tokens, occurrences on the train split), heldout_saving (what
        it adds to the share of held-out tokens saved), sacrificed_id, sacrificed_token, sacrificed_text,
        sacrificed_frequency, status (kept, moved, new). :func:`plan_selection` adds sacrificed_cost, the tokens that
        the sacrificed token's string takes afterwards.
    """
    candidates = selection.candidates
    ids_before = ids_before or {}
    protected = protected_ids(bpe, {i for candidate in candidates for i in candidate.constituents})
    free = {string: token_id for string, token_id in ids_before.items() if token_id not in protected}
    kept = {c.string: free[c.string] for c in candidates if c.string in free}
    fresh = iter(choose_sacrifices(bpe, frequencies, protected.union(kept.values()), len(candidates) - len(kept)))
    sacrifices = [kept[c.string] if c.string in kept else next(fresh) for c in candidates]
    given_up = [bpe.strings[i] for i in sacrifices]
    status = ["kept" if c.string in kept else "moved" if c.string in ids_before else "new" for c in candidates]
    shares = np.zeros(len(candidates)) if heldout is None else heldout[: len(candidates)]
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
            "heldout_saving": pl.Series(shares, dtype=pl.Float64),
            "sacrificed_id": pl.Series(sacrifices, dtype=pl.Int64),
            "sacrificed_token": pl.Series(given_up, dtype=pl.String),
            "sacrificed_text": pl.Series([text_of(string) for string in given_up], dtype=pl.String),
            "sacrificed_frequency": pl.Series(frequencies[sacrifices], dtype=pl.Int64),
            "status": pl.Series(status, dtype=pl.String),
        }
    )


def rules_from_table(table: pl.DataFrame) -> RemapRules:
    """The remap rules that a table of candidates asks for, by id: the same whatever their order in the table."""
    return RemapRules(
        tuple(
            RemapRule(
                id=row["sacrificed_id"],
                sacrificed_token=row["sacrificed_token"],
                new_token=row["new_token"],
                constituents=tuple(row["constituents"].split(" ")) if row["constituents"] else (),
                frequencies={
                    "sacrificed": row["sacrificed_frequency"],
                    "new": row["frequency"],
                    "saving": row["saving"],
                },
            )
            for row in table.sort("sacrificed_id").iter_rows(named=True)
        )
    )


def verdict(saving_heldout: float, count: int, floor: float) -> str:
    """Whether the reassignment is worth its fine-tuning, in one sentence.

    Args:
        saving_heldout: share of held-out tokens saved.
        count: new tokens.
        floor: the share below which a fine-tuning costs more than shorter sequences give back.
    """
    if saving_heldout < floor:
        return (
            f"Hardly worth it: {count:,} new tokens save {saving_heldout:.1%} of held-out tokens, less than "
            f"{floor:.0%}. Their rows have to be learned; fine-tuning the base model as it is will likely do as "
            "well. --merge-scope across saves more, where phrases recur."
        )
    return f"{count:,} new tokens save {saving_heldout:.1%} of held-out tokens."


def selection_log_text(table: pl.DataFrame, saving_floor: float) -> str:
    """Markdown: what was chosen and why, the saving by hundreds, what is given up and what that text costs."""
    saving, heldout = table["saving"].to_numpy(), table["heldout_saving"].to_numpy()
    lost = table.filter(pl.col("sacrificed_frequency") > 0)
    status = dict(table["status"].value_counts().iter_rows())
    lines = [
        "# Selection",
        "",
        verdict(float(heldout.sum()), len(table), saving_floor),
        "",
        f"On the train split they save {int(saving.sum()):,} tokens. Every saving is counted where the token stands "
        "once all are in use, so that they add up. All figures are of the corpus that the selection was made on: it "
        "stays in force, and they with it, until another saves noticeably more (`least_gain`).",
        "",
        f"{status.get('kept', 0):,} stood in the rules before and keep their id, {status.get('moved', 0):,} get "
        f"another one, {status.get('new', 0):,} are new.",
        "",
        f"{len(table) - len(lost):,} of the sacrificed tokens never occur in the train split; {len(lost):,} do, "
        f"{int(lost['sacrificed_frequency'].sum()):,} times in all.",
        "",
        "## Saving by number of new tokens",
        "",
        "| new tokens | held-out tokens saved | of these the last hundred |",
        "|---:|---:|---:|",
    ]
    lines += [
        f"| {point.new_tokens:,} | {point.heldout:.2%} | {point.last_hundred:.3%} |" for point in saving_curve(table)
    ]
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
            ("tokens it takes now", "sacrificed_cost"),
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
