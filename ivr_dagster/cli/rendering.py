"""What the terminal shows: bars on standard error while work goes on, tables on standard output after it."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ivr_dagster.pipeline import ArtifactPaths

# a file or a pipe has no width: lines are not broken for it
OUT = Console() if sys.stdout.isatty() else Console(width=200)
ERR = Console(stderr=True)

if TYPE_CHECKING:
    from ivr_dagster.cli.experiments import Experiment
    from ivr_dagster.core.vocabulary.log import CurvePoint
    from ivr_dagster.core.vocabulary.selection import Plan

SECONDS_BETWEEN_LINES = 5.0
BAR_WIDTH = 40
LISTED = 15


class ProgressBars:
    """One bar for each long step under way; on a standard error that is no terminal, a line now and then."""

    def __init__(self, stage: str, assets: int, *, quiet: bool) -> None:
        self._lines = not quiet and not sys.stderr.isatty()
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=ERR,
            transient=True,
            disable=quiet or self._lines,
        )
        self._tasks: dict[str, Any] = {}
        self._title = f"{stage}: {assets} asset{'s' if assets > 1 else ''}"

    def __enter__(self) -> Self:
        self._progress.start()
        self._progress.add_task(self._title, total=None)
        return self

    def advance(self, label: str, done: float, total: float, unit: str) -> None:
        """A `progress.Listener`."""
        if self._lines:
            if time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
                ERR.print(f"{self._title}: {label}: {done:,.0f} of {total:,.0f} {unit}", highlight=False)
            return
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(f"{label}, {unit}", total=total)
        self._progress.update(self._tasks[label], completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def figures_table(stage: str, figures: Mapping[str, str], checks: list[dict[str, Any]]) -> None:
    """A stage's assets with key figures, and its checks."""
    table = Table(title=stage, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    for name, text in figures.items():
        table.add_row(f"  {name}", text)
    OUT.print(table)
    passed = [check for check in checks if check["passed"]]
    if passed:
        OUT.print(
            f"  [green]{len(passed)} of {len(checks)} checks passed[/]: "
            + ", ".join(f"{c['asset']}.{c['check']}" for c in passed)
        )
    for check in checks:
        if not check["passed"]:
            OUT.print(
                f"  [yellow]{check['severity']}[/] {check['asset']}.{check['check']}: {check['remedy']}",
                highlight=False,
            )


def states_table(states: list[Any], figures_of: Callable[[Any], str]) -> None:
    """Assets, fresh or stale."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "asset", "state", "materialized", "figures"):
        table.add_column(column)
    last = ""
    for state in states:
        when = f"{state.materialized:%Y-%m-%d %H:%M}" if state.materialized else ""
        shown = f"[yellow]{state.stale}[/]" if state.stale else "[green]fresh[/]"
        table.add_row("" if state.stage == last else state.stage, state.name, shown, when, figures_of(state))
        last = state.stage
    OUT.print(table if states else "Nothing is stale.")


def experiments_table(
    found: list["Experiment"], compared: Sequence[tuple[str, str, str]], number: Callable[[str, Any], str]
) -> None:
    """Experiments beside each other: settings that differ, figures; in brackets what is stale.

    Args:
        found: the experiments, first the folder that they were taken from.
        compared: heading, asset and figure of each column.
        number: a figure's name and value as text.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("experiment", "differs in", *(heading for heading, _, _ in compared), "stale"):
        table.add_column(column)
    for each in found:
        differs = ", ".join(f"{key}={value}" for key, value in each.changed.items())
        cells = []
        for _, asset, figure in compared:
            known = each.figures.get(asset, {}).get(figure)
            shown = "" if known is None else number(figure, known)
            cells.append(f"({shown})" if shown and asset in each.stale else shown)
        stale = f"{len(each.stale)} assets" if each.stale else ""
        table.add_row(
            each.name or "-", f"[red]{escape(each.fault)}[/]" if each.fault else escape(differs), *cells, stale
        )
    OUT.print(table)


def plan_tables(plan: "Plan", points: list["CurvePoint"], verdict: str) -> None:
    """A selection that was not written: the saving by number of new tokens, the first of them, what is sacrificed."""
    OUT.print(f"[bold]{verdict}[/]", highlight=False)
    if plan.rejected_gain is None:
        OUT.print(f"Current rules: {plan.kept:,} kept, {plan.moved:,} moved, {plan.dropped:,} dropped.")
    else:
        OUT.print(
            f"The current selection stays: a new one would save {plan.rejected_gain:.2%} more of held-out tokens, less "
            "than --least-gain."
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("new tokens", "saved", "last hundred"):
        table.add_column(column, justify="right")
    table.add_column("tokens saved, held-out")
    most = max((point.heldout for point in points), default=0) or 1
    for point in points:
        table.add_row(
            f"{point.new_tokens:,}",
            f"{point.heldout:.2%}",
            f"{point.last_hundred:.3%}",
            "█" * round(BAR_WIDTH * point.heldout / most),
        )
    OUT.print(table)
    for title, rows, columns in (
        ("first new tokens", plan.table.head(LISTED), ("new_text", "saving", "frequency", "sacrificed_text")),
        (
            "sacrificed although used",
            plan.table.filter(plan.table["sacrificed_frequency"] > 0)
            .sort("sacrificed_frequency", descending=True)
            .head(LISTED),
            ("sacrificed_text", "sacrificed_frequency", "sacrificed_cost", "new_text", "saving"),
        ),
    ):
        if len(rows):
            table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
            for name in columns:
                table.add_column(name.replace("_", " "), justify="left" if name.endswith("text") else "right")
            for row in rows.select(columns).iter_rows():
                table.add_row(*(escape(repr(cell)) if isinstance(cell, str) else f"{cell:,}" for cell in row))
            OUT.print(table)
    OUT.print("Nothing was written. `ivr select` with the same options does.", highlight=False)


def tuning_table(study: Mapping[str, Any], file: Path, command: str) -> None:
    """The best trials of a search, what the first came to, and what to do with the settings found."""
    trials = {trial["number"]: trial for trial in study["trials"]}
    order = {"complete": 0, "pruned": 1, "killed": 2}
    ranked = sorted(trials.values(), key=lambda each: (order[each["state"]], each["value"] is None, each["value"]))
    names = list(trials[study["best"]]["parameters"])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", "bits per byte", "tokens per byte", *names, ""):
        table.add_column(column.replace("_", " "), justify="right" if column else "left")
    for trial in ranked[:LISTED]:
        remarks = {study["best"]: "[green]best[/]", study["default"]: "settings as they were"}
        remark = remarks.get(trial["number"], {"pruned": "given up", "killed": "killed, run again"}.get(trial["state"]))
        table.add_row(
            str(trial["number"]),
            "" if trial["value"] is None else f"{trial['value']:.4f}",
            str(trial["figures"].get("tokens_per_byte", "")),
            *(f"{trial['parameters'][name]:g}" if name in trial["parameters"] else "" for name in names),
            remark or "",
        )
    OUT.print(table)
    finished = sum(trial["state"] != "killed" for trial in trials.values())
    if study["done_before"]:
        OUT.print(f"{study['done_before']} of {finished} trials had been done before.", highlight=False)
    elif study["other_studies"]:
        OUT.print("A new study; what was found with other settings, text or models stays in study.db.", highlight=False)
    OUT.print(f"best settings  {file}", highlight=False, soft_wrap=True)
    if (file.parent / "settings.yaml").exists():
        select = f"{command} select --max-candidates {study['new_tokens']}"
        OUT.print(f"they go with {study['new_tokens']:,} new tokens  {select}", highlight=False, soft_wrap=True)
    OUT.print(f"to train with them  {command} train --config-path {file}", highlight=False, soft_wrap=True)


def run_table(
    states: Mapping[str, Any], paths: ArtifactPaths, failed_checks: Sequence[str], *, materialized: int
) -> None:
    """The table at the end of `ivr run`: what was made and found."""
    figures = {name: state.figures for name, state in states.items()}
    table = Table(
        title="What was made and found",
        title_justify="left",
        title_style="bold",
        show_header=False,
        box=None,
        pad_edge=False,
    )

    def row(label: str, text: str) -> None:
        table.add_row(f"  {label}", text)

    corpus, distilled, remapped = (
        figures.get(name, {}) for name in ("cleaned_corpus", "distilled_tokenizer", "remapped_tokenizer")
    )
    report, sft = figures.get("evaluation_report", {}), figures.get("sft_checkpoint", {})
    if corpus:
        row("corpus", f"{corpus['train_bytes'] / 1e6:.2f} MB in {corpus['train_documents']:,} documents to learn from, "
            f"{corpus['heldout_bytes'] / 1e6:.2f} MB in {corpus['heldout_documents']:,} held out")  # fmt: skip
    if distilled:
        row(
            "agreement of the distilled tokenizer",
            f"{distilled['agreement']:.3%} of pre-tokens ({distilled['agreement_heldout']:.3%} held-out)",
        )
    if remapped:
        row("tokens reassigned", f"{remapped['tokens_reassigned']:,} of {remapped['vocabulary_size']:,}")
        row(
            "token saving, held-out",
            f"{remapped['token_saving']:.1%} "
            f"({remapped['bytes_per_token_base']:.2f} → {remapped['bytes_per_token']:.2f} bytes per token)",
        )
    if report:
        row(
            "bits per byte, base model",
            f"{report['bpb_base']:.3f} (with the distilled tokenizer {report['bpb_distilled']:.3f})",
        )
        row("… new vocabulary, before training", f"{report['bpb_initialized']:.3f}")
        row(
            "… new vocabulary, after training",
            f"[bold]{report['bpb_sft']:.3f}[/]" + (f" ({sft['steps']:,} steps)" if sft else ""),
        )
        if "bpb_vanilla_sft" in report:
            row("… vanilla baseline, same text", f"{report['bpb_vanilla_sft']:.3f}")
        row("report", str(paths["evaluation_report"] / "report.md"))
        row("adapted model", str(paths["sft_checkpoint"] / "final_model"))
    if failed_checks:
        row("checks that did not pass", f"[yellow]{', '.join(failed_checks)}[/] (the UI says what to do)")
    row("materialized now", f"{materialized} assets" if materialized else "nothing: everything was fresh")
    row("lineage in the UI", f"ivr --artifacts-dir {paths.root} ui, then http://127.0.0.1:3000")
    OUT.print(table, soft_wrap=True)
