"""Terminal output: progress bars on standard error, and result tables on standard output."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.pipeline import ASSETS, SHARES

# lines are not wrapped when output goes to a file or pipe
OUT = Console() if sys.stdout.isatty() else Console(width=200)
ERR = Console(stderr=True)

if TYPE_CHECKING:
    from ivr_dagster.cli.experiment_folders import Experiment
    from ivr_dagster.cli.project import AssetState, StageResult
    from ivr_dagster.core.vocabulary.log import CurvePoint
    from ivr_dagster.core.vocabulary.selection import Plan

SECONDS_BETWEEN_LINES = 5.0
BAR_WIDTH = 40
MAX_ROWS = 15
# columns that a narrow terminal does not shorten
WHOLE = ("stage", "asset", "experiment")
# columns that compare experiments: heading, asset, figure
COMPARED = (
    ("new tokens", "remapped_tokenizer", "tokens_reassigned"),
    ("token saving", "remapped_tokenizer", "token_saving"),
    ("bytes per token", "remapped_tokenizer", "bytes_per_token"),
    ("BPB, base", "evaluation_report", "bpb_base"),
    ("initialized", "evaluation_report", "bpb_initialized"),
    ("trained", "evaluation_report", "bpb_sft"),
    ("vanilla", "evaluation_report", "bpb_vanilla_sft"),
    ("forgetting", "evaluation_report", "retention_rise_sft"),
)


class ProgressBars:
    """A bar for the command and one per long step; if standard error is not a terminal, a line every few seconds.

    Implements `progress.Listener`.
    """

    def __init__(self, title: str, assets: int, *, quiet: bool) -> None:
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
        self._title, self._assets, self._finished = title, assets, 0

    def __enter__(self) -> Self:
        self._progress.start()
        self._whole = self._progress.add_task(self._described(), total=self._assets)
        return self

    @property
    def tasks(self) -> list[Task]:
        """The bars that are shown."""
        return self._progress.tasks

    def _described(self) -> str:
        return f"{self._title}: {self._finished} of {self._assets} assets"

    def advance(self, label: str, done: float, total: float, unit: str) -> None:
        """Update the bar of a step."""
        if self._lines:
            if time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
                ERR.print(f"{self._described()}: {label}: {done:,.0f} of {total:,.0f} {unit}", highlight=False)
            return
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(f"{label}, {unit}", total=total)
        self._progress.update(self._tasks[label], completed=done, total=total)

    def finish_asset(self) -> None:
        """Advance the bar of the whole command, and remove those of the asset's steps."""
        self._finished += 1
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
        self._progress.update(self._whole, completed=self._finished, description=self._described())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def print_stage_table(stage: str, result: "StageResult") -> None:
    """Print the assets of a stage with their key figures, and its checks."""
    table = _titled_table(stage)
    for name, figures in result.figures.items():
        table.add_row(f"  {name}", _key_figures(name, figures))
    OUT.print(table)
    passed = [f"{check['asset']}.{check['check']}" for check in result.checks if check["passed"]]
    if passed:
        OUT.print(f"  [green]{len(passed)} of {len(result.checks)} checks passed[/]: {', '.join(passed)}")
    for check in result.checks:
        if not check["passed"]:
            name = f"{check['asset']}.{check['check']}"
            OUT.print(f"  [yellow]{check['severity']}[/] {name}: {check['remedy']}", highlight=False)


def print_states_table(states: Sequence["AssetState"]) -> None:
    """Print assets with their key figures, and whether each is fresh or why it is stale."""
    table = _table("stage", "asset", "state", "materialized", "figures")
    stage = ""
    for state in states:
        when = f"{state.materialized:%Y-%m-%d %H:%M}" if state.materialized else ""
        text = f"[yellow]{escape(state.stale)}[/]" if state.stale else "[green]fresh[/]"
        text += f" (waiting for you: {state.waiting})" if state.waiting else ""
        figures = _key_figures(state.name, state.figures)
        table.add_row("" if state.stage == stage else state.stage, state.name, text, when, figures)
        stage = state.stage
    OUT.print(table if states else "Nothing is stale.")


def print_experiments_table(experiments: Iterable["Experiment"]) -> None:
    """Print experiments with changed settings and key figures; figures of stale assets are in parentheses."""
    table = _table("experiment", "changed settings", *(heading for heading, _, _ in COMPARED), "stale")
    for each in experiments:
        changed = escape(", ".join(f"{name}={value}" for name, value in each.changed.items()))
        cells = []
        for _, asset, figure in COMPARED:
            value = each.figures.get(asset, {}).get(figure)
            text = "" if value is None else _number(figure, value)
            cells.append(f"({text})" if text and asset in each.stale else text)
        stale = f"{len(each.stale)} assets" if each.stale else ""
        table.add_row(each.name or "-", f"[red]{escape(each.fault)}[/]" if each.fault else changed, *cells, stale)
    OUT.print(table)


def print_plan_tables(plan: "Plan", points: Sequence["CurvePoint"], verdict: str) -> None:
    """Print a selection that was not written: saving by number of new tokens, new tokens, used sacrificed tokens."""
    OUT.print(f"[bold]{verdict}[/]", highlight=False)
    if plan.rejected_gain is None:
        OUT.print(f"Current rules: {plan.kept:,} kept, {plan.moved:,} moved, {plan.dropped:,} dropped.")
    else:
        OUT.print(
            f"The current selection is kept: a new one would save only {plan.rejected_gain:.2%} more of the held-out "
            "tokens, less than --least-gain."
        )
    table = _table("new tokens", "saved", "by the last 100", "tokens saved, held-out", right=3)
    most = max((point.heldout for point in points), default=0) or 1
    for point in points:
        bar = "█" * round(BAR_WIDTH * point.heldout / most)
        table.add_row(f"{point.new_tokens:,}", f"{point.heldout:.2%}", f"{point.last_hundred:.3%}", bar)
    OUT.print(table)
    used = plan.table.filter(plan.table["sacrificed_frequency"] > 0).sort("sacrificed_frequency", descending=True)
    for title, rows, columns in (
        ("first new tokens", plan.table, ("new_text", "saving", "frequency", "sacrificed_text")),
        (
            "sacrificed although used",
            used,
            ("sacrificed_text", "sacrificed_frequency", "sacrificed_cost", "new_text", "saving"),
        ),
    ):
        if len(rows):
            table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
            for name in columns:
                table.add_column(name.replace("_", " "), justify="left" if name.endswith("text") else "right")
            for row in rows.head(MAX_ROWS).select(columns).iter_rows():
                table.add_row(*(escape(repr(cell)) if isinstance(cell, str) else f"{cell:,}" for cell in row))
            OUT.print(table)
    OUT.print("Nothing was written. Run `ivr select` with the same options to write it.", highlight=False)


def print_tuning_table(study: Mapping[str, Any], file: Path, command: str) -> None:
    """Print the best trials of a search, the first trial, and how to use the best settings."""
    trials = {trial["number"]: trial for trial in study["trials"]}
    order = {"complete": 0, "pruned": 1, "killed": 2}
    ranked = sorted(trials.values(), key=lambda each: (order[each["state"]], each["value"] is None, each["value"]))
    names = list(trials[study["best"]]["parameters"])
    columns = ("trial", "bits per byte", "tokens per byte", *(name.replace("_", " ") for name in names), "")
    table = _table(*columns, right=len(columns) - 1)
    remarks = {study["best"]: "[green]best[/]", study["default"]: "original settings"}
    states = {"pruned": "pruned", "killed": "killed, run again"}
    for trial in ranked[:MAX_ROWS]:
        table.add_row(
            str(trial["number"]),
            "" if trial["value"] is None else f"{trial['value']:.4f}",
            str(trial["figures"].get("tokens_per_byte", "")),
            *(f"{trial['parameters'][name]:g}" if name in trial["parameters"] else "" for name in names),
            remarks.get(trial["number"], states.get(trial["state"], "")),
        )
    OUT.print(table)
    finished = sum(trial["state"] != "killed" for trial in trials.values())
    if study["done_before"]:
        OUT.print(f"{study['done_before']} of {finished} trials were completed earlier.", highlight=False)
    elif study["other_studies"]:
        OUT.print("A new study; studies of other settings, text or models remain in study.db.", highlight=False)
    OUT.print(f"best settings  {file}", highlight=False, soft_wrap=True)
    if (file.parent / "settings.yaml").exists():
        select = f"{command} select --max-candidates {study['new_tokens']}"
        OUT.print(f"to select their {study['new_tokens']:,} new tokens  {select}", highlight=False, soft_wrap=True)
    OUT.print(f"to train with them  {command} train --config-path {file}", highlight=False, soft_wrap=True)


def print_run_table(
    figures: Mapping[str, Mapping[str, Any]], paths: ArtifactPaths, failed_checks: Sequence[str], *, materialized: int
) -> None:
    """Print the summary at the end of `ivr run`.

    Args:
        figures: figures of fresh assets.
        paths: paths of the artifacts.
        failed_checks: failed checks, as `asset.check`.
        materialized: number of assets that this command materialized.
    """
    table = _titled_table("Summary")
    rows = [*_tokenizer_rows(figures), *_report_rows(figures, paths)]
    if failed_checks:
        rows.append(("failed checks", f"[yellow]{', '.join(failed_checks)}[/] (the UI explains how to fix them)"))
    rows.append(("materialized", f"{materialized} assets" if materialized else "nothing: everything was fresh"))
    running = paths.ui_lock.holder()
    rows.append(("lineage in the UI", running or f"ivr --artifacts-dir {paths.root} ui"))
    for label, text in rows:
        table.add_row(f"  {label}", text)
    OUT.print(table, soft_wrap=True)


def _tokenizer_rows(figures: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    if corpus := figures.get("cleaned_corpus"):
        train = f"{corpus['train_bytes'] / 1e6:.2f} MB in {corpus['train_documents']:,} training documents"
        heldout = f"{corpus['heldout_bytes'] / 1e6:.2f} MB in {corpus['heldout_documents']:,} held-out documents"
        rows.append(("corpus", f"{train}, {heldout}"))
    if distilled := figures.get("distilled_tokenizer"):
        agreement = f"{distilled['agreement']:.3%} of pre-tokens ({distilled['agreement_heldout']:.3%} held-out)"
        rows.append(("agreement of the distilled tokenizer", agreement))
    if remapped := figures.get("remapped_tokenizer"):
        rows.append(("tokens reassigned", f"{remapped['tokens_reassigned']:,} of {remapped['vocabulary_size']:,}"))
        change = f"{remapped['bytes_per_token_base']:.2f} → {remapped['bytes_per_token']:.2f} bytes per token"
        rows.append(("token saving, held-out", f"{remapped['token_saving']:.1%} ({change})"))
    return rows


def _report_rows(figures: Mapping[str, Mapping[str, Any]], paths: ArtifactPaths) -> list[tuple[str, str]]:
    report, sft = figures.get("evaluation_report"), figures.get("sft_checkpoint")
    if not report:
        return []
    distilled = f"(with the distilled tokenizer {report['bpb_distilled']:.3f})"
    steps = f" ({sft['steps']:,} steps)" if sft else ""
    rows = [
        ("bits per byte, base model", f"{report['bpb_base']:.3f} {distilled}"),
        ("… new vocabulary, before training", f"{report['bpb_initialized']:.3f}"),
        ("… new vocabulary, after training", f"[bold]{report['bpb_sft']:.3f}[/]{steps}"),
    ]
    if "bpb_vanilla_sft" in report:
        rows.append(("… vanilla baseline, same text", f"{report['bpb_vanilla_sft']:.3f}"))
    rows.append(("report", str(paths["evaluation_report"] / "report.md")))
    rows.append(("adapted model", str(paths["sft_checkpoint"] / "final_model")))
    return rows


def _table(*columns: str, right: int = 0) -> Table:
    """A table with headings; the first `right` columns are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number < right else "left", no_wrap=column in WHOLE)
    return table


def _titled_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def _key_figures(asset: str, figures: Mapping[str, Any]) -> str:
    names = ASSETS[asset].figures if asset in ASSETS else ()
    return ", ".join(f"{name.replace('_', ' ')} {_number(name, figures[name])}" for name in names if name in figures)


def _number(figure: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if figure in SHARES:
        return f"{value:.3%}"
    return f"{value:,.3f}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"
