"""The evaluation report for people: what came out in plain words, tables, and where the plots go."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ivr_dagster.core.evaluation.figures import VARIANTS, EvaluationReport, LossCurve, as_json, in_order
from ivr_dagster.core.evaluation.intervals import FEW_DOCUMENTS, Interval
from ivr_dagster.core.evaluation.plots import PLOT_TITLES, plots

# baseline → its name in a sentence, and what the comparison with it says
_BASELINES = {
    "vanilla_sft": (
        "the vanilla baseline on the same text",
        "That baseline is the base model fine-tuned on the same text (equal bytes) with its own tokenizer; it read that"
        " text in more tokens, so it took more compute. The difference is what the new vocabulary costs or brings where"
        " text is what there is little of.",
    ),
    "vanilla_compute_sft": (
        "the vanilla baseline on equal compute",
        "That baseline is the base model fine-tuned with its own tokenizer on as many tokens as the adapted model,"
        " which is less text (equal compute). The difference is what the new vocabulary costs or brings where compute"
        " is what there is little of.",
    ),
}

# from one seed to the next the BPB of a fine-tuned model moves by about this much
_SEED_NOISE = 0.05


def as_markdown(report: EvaluationReport, plot_paths: Mapping[str, str] | None = None) -> str:
    """The report for people: what came out in plain words, the tables, the plots, samples side by side.

    Args:
        report: the values.
        plot_paths: name of a plot of :func:`plots` → its path, relative to the Markdown file.
    """
    parts = ["# Evaluation", *summary(report), "## Quality", quality_table(report), _UNITS]
    if report.context_bytes is not None:
        parts += [_contexts(report)]
    parts += _differences(report)
    parts += _token_groups(report)
    parts += _retention(report)
    parts += _speed(report)
    parts += ["## Tokenizer", _tokenizer_table(report)]
    if plot_paths:
        parts += ["## Plots"]
    for name, path in (plot_paths or {}).items():
        parts += [f"![{PLOT_TITLES.get(name, name)}]({path})"]
        parts += [_PLOT_NOTES[name]] if name in _PLOT_NOTES else []
    parts += _samples(report)
    if report.settings:
        parts += [
            "## Settings",
            table(("setting", "value"), [(key, code(str(value))) for key, value in report.settings.items()]),
        ]
    return "\n\n".join(parts) + "\n"


def summary(report: EvaluationReport) -> list[str]:
    """What came out, in plain words: a paragraph an entry."""
    variants = report.variants
    saving = f"{_percent(abs(report.token_saving))} {'fewer' if report.token_saving >= 0 else 'more'} tokens"
    text = f"{report.heldout_documents:,} documents, {report.heldout_bytes:,} bytes"
    paragraphs = [f"The new vocabulary writes the held-out text with **{saving}** than the base tokenizer ({text})."]
    if 0 < report.token_saving < 1:
        paragraphs[0] += f" A context of the same length holds {1 / (1 - report.token_saving):.1f} times the text."
    if "sft" in variants:
        for other, than, meaning in (
            ("base", "the base model", ""),
            *((name, *_BASELINES[name]) for name in _BASELINES),
        ):
            if other in variants:
                subject = "The fine-tuned model is " if other == "base" or "base" not in variants else "It is "
                told = _comparison(
                    variants["sft"].bpb, variants[other].bpb, than, report.differences.get(("sft", other))
                )
                paragraphs.append(f"{subject}{told} {meaning}".rstrip())
    paragraphs += [each for each in (_new_tokens_told(report), _speed_told(report), _retention_told(report)) if each]
    if report.differences and _few(report):
        paragraphs.append(
            f"**The intervals are rough:** {report.heldout_documents} held-out documents are too few to tell how much"
            " the figures depend on them. Hold out more documents, or shorter ones."
        )
    if report.round_trip < 1:
        paragraphs.append(
            f"**Not every text comes back:** {_percent(1 - report.round_trip)} of the held-out documents differ after"
            " encoding and decoding."
        )
    return paragraphs


def write_report(
    report: EvaluationReport, folder: Path, curves: Mapping[str, LossCurve] | None = None
) -> dict[str, bytes]:
    """Write `report.json`, `report.md` and `plots/<name>.png` into `folder`; returns the plots by name.

    Raises:
        InputError: a figure that is no finite number; nothing is written then.
    """
    values = json.dumps(as_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    images = plots(report, curves)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        (folder / "plots" / f"{name}.png").write_bytes(image)
    (folder / "report.json").write_text(values + "\n", encoding="utf-8")
    markdown = as_markdown(report, {name: f"plots/{name}.png" for name in images})
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    return images


_UNITS = (
    "BPB: bits per byte, the negative log-likelihood of the whole held-out text in bits over its UTF-8 bytes; lower is"
    " better, and it may be compared between tokenizers. Bytes per token: higher means fewer tokens for the same text."
)

_PLOT_NOTES = {
    "validation_by_text": "Against the text read: who learns more from the same text.",
    "validation_by_compute": "Against the tokens trained on, which stand for compute: the models have one architecture"
    " and one vocabulary size, so a token costs each of them the same.",
}


def _comparison(value: float, other: float, than: str, difference: Interval | None = None) -> str:
    """'better than <than>: …' with figures, for BPB."""
    if value == other:
        return f"exactly as good as {than}: {value:.3f} BPB."
    word = "better" if value < other else "worse"
    share = abs(value - other) / other
    verdict = f"**{_percent(share)} {word}** than" if share >= 0.0005 else "**as good as**"
    caution = f" One seed: a difference below {_SEED_NOISE} may be chance." if abs(value - other) < _SEED_NOISE else ""
    between = (
        f" (difference {difference.value:+.3f}, 95 % interval {difference.low:+.3f} to {difference.high:+.3f})"
        if difference
        else ""
    )
    zero = (
        " The interval holds zero: with other documents it might be the other way round."
        if difference and difference.low < 0 < difference.high
        else ""
    )
    return f"{verdict} {than}: {value:.3f} BPB against {other:.3f}{between}.{zero}{caution}"


def _new_tokens_told(report: EvaluationReport) -> str:
    sft = report.variants.get("sft")
    if sft is None or "new" not in sft.groups:
        return ""
    new, kept = sft.groups["new"], sft.groups.get("kept")
    told = f"New tokens are {_percent(new.share)} of the tokens of the held-out text"
    if sft.new_tokens_written is not None:
        told += f" and {_percent(sft.new_tokens_written)} of those that the fine-tuned model writes itself"
    told += "."
    if kept is not None:
        told += f" It needs {new.bits_per_byte:.2f} bits for a byte of theirs, {kept.bits_per_byte:.2f} for one of kept"
        told += " tokens."
    return told


def _speed_told(report: EvaluationReport) -> str:
    speeds = report.bytes_per_second
    if "base" not in speeds or "sft" not in speeds:
        return ""
    return (
        f"Where it writes text like the held-out one it is {speeds['sft'] / speeds['base']:.2f} times as fast as the"
        f" base model: {speeds['sft']:,.0f} against {speeds['base']:,.0f} bytes a second, on the machine of this"
        " evaluation."
    )


def _retention_told(report: EvaluationReport) -> str:
    retention = report.retention
    if retention is None or retention.skipped:
        return ""
    rises = retention.rises
    if "sft" not in rises:
        return ""
    moved = {name: f"{'rose' if rise >= 0 else 'fell'} by {_percent(abs(rise))}" for name, rise in rises.items()}
    told = f"On text of another domain ({retention.source}) its bits per byte {moved['sft']} against the base model's"
    return (
        "; ".join([told, *(f"those of {_BASELINES[name][0]} {moved[name]}" for name in _BASELINES if name in moved)])
        + "."
    )


def quality_table(report: EvaluationReport) -> str:
    """Bits per byte and bytes per token of every variant, as a Markdown table."""
    base = report.variants.get("base")
    rows = [
        (
            f"`{name}`",
            VARIANTS.get(name, ""),
            f"{variant.bpb:.4f}",
            f"{variant.interval.low:.3f} to {variant.interval.high:.3f}" if variant.interval else "",
            f"{100 * (variant.bpb / base.bpb - 1):+.1f} %" if base else "",
            f"{variant.bytes_per_token:.3f}",
            f"{variant.tokens:,}",
        )
        for name, variant in in_order(report)
    ]
    header = ("variant", "what it is", "BPB", "95 % interval", "against base", "bytes per token", "tokens")
    return table(header, rows, right_from=2)


def _contexts(report: EvaluationReport) -> str:
    told = (
        f"Every model has at most {report.context_bytes:,} bytes of text before a token, so none sees more than"
        " another."
    )
    short = {name: variant.shortened / variant.tokens for name, variant in in_order(report) if variant.shortened}
    if short:
        listed = ", ".join(f"`{name}` {_percent(share, 2)}" for name, share in short.items())
        told += f" Tokens read with less, where so many bytes take more tokens than the model reads at once: {listed}."
    return told


def _differences(report: EvaluationReport) -> list[str]:
    if not report.differences:
        return []
    rows = [
        (
            f"`{variant}`",
            f"`{against}`",
            f"{interval.value:+.4f}",
            f"{interval.low:+.4f} to {interval.high:+.4f}",
            "yes" if interval.low * interval.high > 0 else "no",
        )
        for (variant, against), interval in report.differences.items()
    ]
    rough = f" With {report.heldout_documents} documents they are rough." if _few(report) else ""
    return [
        "### Differences",
        table(("variant", "less", "BPB", "95 % interval", "zero is outside"), rows, right_from=2),
        "Intervals say how much the figures depend on which documents were held out (bootstrap over documents, both"
        " variants on the same ones). What another training seed would change is not in them: about"
        f" {_SEED_NOISE} BPB.{rough}",
    ]


def _few(report: EvaluationReport) -> bool:
    return report.heldout_documents < FEW_DOCUMENTS


def _token_groups(report: EvaluationReport) -> list[str]:
    rows = [
        (
            f"`{name}`",
            key,
            f"{group.tokens:,}",
            _percent(group.share),
            f"{group.bits_per_token:.3f}",
            f"{group.bits_per_byte:.3f}",
        )
        for name, variant in in_order(report)
        for key, group in variant.groups.items()
    ]
    if not rows:
        return []
    header = ("variant", "tokens", "occurrences", "share", "bits per token", "bits per byte")
    parts = ["## New and kept tokens", table(header, rows, right_from=2)]
    written = [
        f"`{name}` {_percent(variant.new_tokens_written)}"
        for name, variant in in_order(report)
        if variant.new_tokens_written is not None
    ]
    told = (
        "A new token stands for more bytes than a kept one, so more bits per token are no fault; compare bits per byte."
    )
    if written:
        told += f" Share of new tokens in what the models write themselves: {', '.join(written)}."
    return [*parts, told]


def _retention(report: EvaluationReport) -> list[str]:
    retention = report.retention
    if retention is None:
        return []
    if retention.skipped:
        return ["## Other text", f"Not measured: {retention.skipped}"]
    rises = retention.rises
    rows = [
        (
            f"`{name}`",
            f"{each.value:.4f}",
            f"{each.low:.3f} to {each.high:.3f}",
            _signed_percent(rises[name]) if name in rises else "",
        )
        for name, each in retention.bpb.items()
    ]
    rough = "; the intervals are rough" if retention.documents < FEW_DOCUMENTS else ""
    return [
        "## Other text",
        f"How much of what the base model could do is left: bits per byte on {retention.source},"
        f" {retention.documents:,} documents, {retention.bytes:,} bytes{rough}.",
        table(("variant", "BPB", "95 % interval", "against base"), rows, right_from=1),
    ]


def _speed(report: EvaluationReport) -> list[str]:
    if not report.speeds:
        return []
    speeds = report.bytes_per_second
    rows = [
        (
            f"`{name}`",
            f"{speed.tokens:,.1f}",
            f"{speeds[name]:,.0f}",
            f"{speeds[name] / speeds['base']:.2f}" if "base" in speeds else "",
            f"{speed.bytes:,.0f}",
        )
        for name, speed in report.speeds.items()
    ]
    header = ("variant", "tokens a second", "bytes a second", "against base", "bytes a second, own words")
    return [
        "## Speed",
        table(header, rows, right_from=1),
        "Bytes a second are tokens a second times bytes per token of the held-out text. Own words: of what it wrote"
        " while it was timed, greedily, one text at a time; a model that repeats itself does so in tokens of any"
        " length. Taken on the machine of this evaluation and with whatever else it did; not the same twice.",
    ]


def _tokenizer_table(report: EvaluationReport) -> str:
    used = f"{report.new_tokens_used:,} of {report.new_tokens:,} ({_percent(report.new_tokens_used_share)})"
    rows = [
        ("token saving", _percent(report.token_saving)),
        ("agreement of the distilled tokenizer", _percent(report.agreement, 3)),
        ("documents that come back exactly", _percent(report.round_trip, 2)),
        ("new tokens that the held-out text uses", used),
    ]
    return table(("figure", "value"), rows, right_from=1)


def _samples(report: EvaluationReport) -> list[str]:
    written = [(name, variant.continuations) for name, variant in in_order(report) if variant.continuations]
    if not report.prompts or not written:
        return []
    parts = ["## Samples", "What each model writes after a prompt; a glimpse, not a measure."]
    for number, prompt in enumerate(report.prompts):
        parts += [f"### After {code(prompt)}" if prompt else "### At the beginning of a document"]
        rows = [(f"`{name}`", code(texts[number])) for name, texts in written if number < len(texts)]
        parts += [table(("variant", "continuation"), rows)]
    return parts


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right_from: int | None = None) -> str:
    """A Markdown table; columns from `right_from` on are set flush right."""
    rule = ["---:" if right_from is not None and column >= right_from else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def code(text: str) -> str:
    """Any text as Markdown code on one line, also in a table."""
    shown = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text.replace("\n", "⏎")).replace("|", "¦")
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    if not shown.strip():
        return "(white space only)" if shown else "(nothing)"
    return f"{fence} {shown} {fence}"


def _percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f} %"


def _signed_percent(share: float) -> str:
    return f"{100 * share:+.1f} %"
