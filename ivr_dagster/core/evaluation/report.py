"""The evaluation report as Markdown: a summary in words, tables, plots and samples."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ivr_dagster.core.evaluation.diagnosis import KINDS, OUTPUT_SIDE
from ivr_dagster.core.evaluation.figures import OTHER_MODELS, VARIANTS, EvaluationReport, as_json
from ivr_dagster.core.evaluation.intervals import FEW_DOCUMENTS, Interval
from ivr_dagster.core.evaluation.plots import PLOT_TITLES, plots

# baseline → its name in a sentence, and what the comparison means
_BASELINES = {
    "vanilla_sft": (
        "the vanilla baseline on the same text",
        "That baseline is the base model fine-tuned on the same text with its own tokenizer. The difference is the"
        " effect of the new vocabulary when text is limited.",
    ),
    "vanilla_compute_sft": (
        "the vanilla baseline with the same compute",
        "That baseline is the base model fine-tuned with its own tokenizer on as many tokens as the adapted model, so"
        " on less text. The difference is the effect of the new vocabulary when compute is limited.",
    ),
}
# BPB of a model that gives all byte values the same probability
_BPB_OF_CHANCE = 8.0
_UNITS = (
    "BPB (bits per byte) is the negative log-likelihood of the whole held-out text in bits, divided by its UTF-8 bytes."
    " Lower is better, and values are comparable between tokenizers. More bytes per token mean fewer tokens for the"
    " same text."
)
_PLOT_NOTES = {
    "validation_by_text": "By text read: which model learns more from the same text.",
    "validation_by_compute": "By tokens trained on, a measure of compute: all models have the same architecture and"
    " vocabulary size, so a token costs each of them the same.",
}


def write_report(report: EvaluationReport, folder: Path) -> dict[str, bytes]:
    """Write `report.json`, `report.md` and `plots/<name>.png` into `folder`; returns the plots by name.

    Raises:
        InputError: a figure is not finite; nothing is written.
    """
    values = json.dumps(as_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    images = plots(report)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        (folder / "plots" / f"{name}.png").write_bytes(image)
    (folder / "report.json").write_text(values + "\n", encoding="utf-8")
    markdown = as_markdown(report, {name: f"plots/{name}.png" for name in images})
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    return images


def as_markdown(report: EvaluationReport, plot_paths: Mapping[str, str] | None = None) -> str:
    """The report as Markdown.

    Args:
        report: the figures.
        plot_paths: name of a plot → its path relative to the Markdown file.
    """
    parts = [
        "# Evaluation",
        *headline(report),
        *summary(report),
        "## Quality",
        quality_table(report),
        _UNITS,
        *_contexts(report),
        *_differences(report),
        *_token_groups(report),
        *_diagnosis(report),
        *_retention(report),
        *_speed(report),
        "## Tokenizer",
        _tokenizer_table(report),
        *_bpe_form(report),
    ]
    if plot_paths:
        parts += ["## Plots"]
    for name, path in (plot_paths or {}).items():
        parts += [f"![{PLOT_TITLES.get(name, name)}]({path})"]
        parts += [_PLOT_NOTES[name]] if name in _PLOT_NOTES else []
    parts += _samples(report)
    if report.settings:
        parts += ["## Settings", settings_table(report)]
    parts += hyperparameters(report)
    return "\n\n".join(parts) + "\n"


def verdict(report: EvaluationReport) -> str:
    """The result in one sentence: the fine-tuned model against plain fine-tuning, or against the base without that.

    Empty without a fine-tuned model or a model to compare it with.
    """
    names = {"vanilla_sft": "plain fine-tuning on the same text", "base": "the base model"}
    reference = next((name for name in names if name in report.variants), None)
    if reference is None or "sft" not in report.variants:
        return ""
    value, other = report.variants["sft"].bpb, report.variants[reference].bpb
    difference = report.differences.get(("sft", reference))
    share = _percent(abs(value / other - 1))
    if value == other or (difference and not difference.is_significant):
        result = f"As good as {names[reference]} within the accuracy of this text ({value:.3f} against {other:.3f} BPB)"
    else:
        quality, amount = ("Better", "fewer") if value < other else ("Worse", "more")
        result = f"{quality} than {names[reference]}: {share} {amount} bits per byte"
    return f"{result}, with {_saving(report)}."


def headline(report: EvaluationReport) -> list[str]:
    """The verdict as a bold paragraph, if there is one."""
    text = verdict(report)
    return [f"**{text}**"] if text else []


def _saving(report: EvaluationReport) -> str:
    return f"{_percent(abs(report.token_saving))} {'fewer' if report.token_saving >= 0 else 'more'} tokens"


def summary(report: EvaluationReport) -> list[str]:
    """The result in words, one entry per paragraph."""
    text = f"{report.heldout_documents:,} documents, {report.heldout_bytes:,} bytes"
    first = f"The new vocabulary encodes the held-out text in **{_saving(report)}** than the base tokenizer ({text})."
    if 0 < report.token_saving < 1:
        first += f" A context of the same length holds {1 / (1 - report.token_saving):.1f} times as much text."
    paragraphs = [first, *_comparisons(report), _new_tokens_sentence(report), _speed_sentence(report)]
    paragraphs += [_forgetting_sentence(report)]
    if report.differences and _has_few_documents(report):
        paragraphs.append(
            f"**The intervals are rough:** {report.heldout_documents} held-out documents are too few to estimate how"
            " much the figures vary. Hold out more documents, or shorter ones."
        )
    poor = [f"`{name}` {each.bpb:.2f}" for name, each in report.ordered() if each.bpb > _BPB_OF_CHANCE]
    if poor:
        paragraphs.append(
            f"**Worse than chance:** {', '.join(poor)}. A model that knows nothing, and gives each of the 256 byte"
            f" values the same probability, has {_BPB_OF_CHANCE:.0f} BPB. Check the model and the fine-tuning."
        )
    if report.round_trip < 1:
        paragraphs.append(
            f"**Not every text is decoded exactly:** {_percent(1 - report.round_trip)} of the held-out documents differ"
            " after encoding and decoding."
        )
    return [paragraph for paragraph in paragraphs if paragraph]


def _comparisons(report: EvaluationReport) -> list[str]:
    variants = report.variants
    paragraphs: list[str] = []
    for other, (name, meaning) in {"base": ("the base model", ""), **_BASELINES}.items():
        if "sft" in variants and other in variants:
            subject = "It is" if paragraphs else "The fine-tuned model is"
            difference = report.differences.get(("sft", other))
            result = _comparison(variants["sft"].bpb, variants[other].bpb, name, difference)
            paragraphs.append(" ".join(part for part in (subject, result, meaning, _compute(report, other)) if part))
    return paragraphs


def _compute(report: EvaluationReport, baseline: str) -> str:
    """The compute of the fine-tuned model and of a baseline; empty if it is unknown."""
    sft, other = (report.training_loss.get(name) for name in ("sft", baseline))
    if not sft or not other or not sft.tokens_seen or not other.tokens_seen:
        return ""
    trained, compared = sft.tokens_seen[-1], other.tokens_seen[-1]
    return (
        f"The fine-tuned model was trained on {trained:,.0f} tokens ({sft.bytes_seen[-1]:,.0f} bytes with repetitions),"
        f" the baseline on {compared:,.0f} ({other.bytes_seen[-1]:,.0f} bytes): {_percent(trained / compared)} of the"
        " baseline's compute."
    )


def _comparison(value: float, other: float, name: str, difference: Interval | None) -> str:
    """'better than <name>: …' with figures in BPB."""
    if value == other:
        return f"exactly as good as {name}: {value:.3f} BPB."
    share = abs(value - other) / other
    verdict = f"**{_percent(share)} {'better' if value < other else 'worse'}** than"
    text = f"{verdict if share >= 0.0005 else '**as good as**'} {name}: {value:.3f} BPB against {other:.3f}"
    if difference:
        text += f" (difference {difference.value:+.3f}, 95 % interval {difference.low:+.3f} to {difference.high:+.3f})"
    text += "."
    if difference and not difference.is_significant:
        text += " The difference is not significant at 95 %."
    return text


def _new_tokens_sentence(report: EvaluationReport) -> str:
    sft = report.variants.get("sft")
    if sft is None or "new" not in sft.groups:
        return ""
    new, kept = sft.groups["new"], sft.groups.get("kept")
    text = f"New tokens make up {_percent(new.share)} of the tokens of the held-out text"
    if sft.new_tokens_written is not None:
        text += f" and {_percent(sft.new_tokens_written)} of the tokens that the fine-tuned model generates"
    text += "."
    if kept is not None:
        text += f" The model needs {new.bits_per_byte:.2f} bits per byte of new tokens, {kept.bits_per_byte:.2f} per"
        text += " byte of kept tokens."
    return text


def _speed_sentence(report: EvaluationReport) -> str:
    speeds = report.bytes_per_second
    if not {"base", "sft"} <= speeds.keys():
        return ""
    return (
        f"The fine-tuned model generates text {speeds['sft'] / speeds['base']:.2f} times as fast as the base"
        f" model: {speeds['sft']:,.0f} against {speeds['base']:,.0f} bytes per second on this machine,"
        " at the bytes per token of the held-out text."
    )


def _forgetting_sentence(report: EvaluationReport) -> str:
    forgetting = report.retention.forgetting if report.retention else {}
    if "sft" not in forgetting or report.retention is None:
        return ""
    names = {"sft": "the fine-tuned model"} | {name: each for name, (each, _) in _BASELINES.items()}
    changes = ", ".join(
        f"{_percent(forgetting[name], sign=True)} for {names[name]}" for name in names if name in forgetting
    )
    return f"Forgetting: bits per byte on out-of-domain text ({report.retention.source}) changed by {changes}."


def quality_table(report: EvaluationReport) -> str:
    """Bits per byte and bytes per token of every variant."""
    base = report.variants.get("base")
    rows = []
    for name, each in report.ordered():
        interval = f"{each.interval.low:.3f} to {each.interval.high:.3f}" if each.interval else ""
        change = _percent(each.bpb / base.bpb - 1, sign=True) if base else ""
        bpb = (f"{each.bpb:.4f}", interval, change)
        rows.append((f"`{name}`", VARIANTS[name], *bpb, f"{each.bytes_per_token:.3f}", f"{each.tokens:,}"))
    header = ("variant", "description", "BPB", "95 % interval", "against base", "bytes per token", "tokens")
    return table(header, rows, right_from=2)


def _contexts(report: EvaluationReport) -> list[str]:
    if report.context_bytes is None:
        return []
    text = f"Every model sees at most {report.context_bytes:,} bytes of text before a token, the same for all variants."
    short = {name: variant.shortened / variant.tokens for name, variant in report.ordered() if variant.shortened}
    if short:
        listed = ", ".join(f"`{name}` {_percent(share, 2)}" for name, share in short.items())
        text += f" Share of tokens with less, because that many bytes exceed the model's context: {listed}."
    return [text]


def _differences(report: EvaluationReport) -> list[str]:
    if not report.differences:
        return []
    rows = []
    for (variant, reference), each in report.differences.items():
        figures = (f"{each.value:+.4f}", f"{each.low:+.4f} to {each.high:+.4f}")
        rows.append((f"`{variant}`", f"`{reference}`", *figures, "yes" if each.is_significant else "no"))
    rough = f" With {report.heldout_documents} documents they are rough." if _has_few_documents(report) else ""
    return [
        "### Differences",
        table(("variant", "minus", "BPB", "95 % interval", "significant at 95 %"), rows, right_from=2),
        "Intervals estimate how much the figures depend on the choice of held-out documents (paired bootstrap over"
        f" documents). They do not include variation between training seeds: repeat the training with another `--seed`"
        f" to see it.{rough}",
    ]


def _has_few_documents(report: EvaluationReport) -> bool:
    return report.heldout_documents < FEW_DOCUMENTS


def _token_groups(report: EvaluationReport) -> list[str]:
    rows, written = [], []
    for name, variant in report.ordered():
        for key, group in variant.groups.items():
            bits = (f"{group.bits_per_token:.3f}", f"{group.bits_per_byte:.3f}")
            rows.append((f"`{name}`", key, f"{group.tokens:,}", _percent(group.share), *bits))
        if variant.new_tokens_written is not None:
            written.append(f"`{name}` {_percent(variant.new_tokens_written)}")
    if not rows:
        return []
    header = ("variant", "tokens", "occurrences", "share", "bits per token", "bits per byte")
    text = "New tokens stand for more bytes than kept ones and need more bits per token; compare bits per byte."
    if written:
        text += f" Share of new tokens in the models' continuations: {', '.join(written)}."
    return ["## New and kept tokens", table(header, rows, right_from=2), text]


def _diagnosis(report: EvaluationReport) -> list[str]:
    if not report.diagnosis:
        return []
    texts = report.diagnosis
    bits = {name: {kind: text.bits[name] for kind, text in texts.items()} for name in next(iter(texts.values())).bits}
    names = [name for name in ("base", OUTPUT_SIDE, *OTHER_MODELS) if name in bits]
    size = sum(text.bytes for text in texts.values())
    rows = [
        (KINDS[kind], _percent(text.bytes / size), *(f"{text.bits[name] / text.bytes:.3f}" for name in names))
        for kind, text in texts.items()
    ]
    total = {name: sum(bits[name].values()) / size for name in names}
    rows.append(("all", _percent(1), *(f"{total[name]:.3f}" for name in names)))
    cost = {
        side: total[after] - total[before]
        for side, before, after in (("output", "base", OUTPUT_SIDE), ("input", OUTPUT_SIDE, "initialized"))
    }
    return [
        "## Where the bits are",
        table(("held-out text encoded as", "share of bytes", *(f"`{name}`" for name in names)), rows, right_from=1),
        f"Bits per byte of each part of the held-out text, cut where tokens of both tokenizers end. `{OUTPUT_SIDE}` is"
        " the base model, reading its own tokens, with the output rows of the initialized model. Before training, the"
        f" new vocabulary changes bits per byte by {cost['output']:+.3f} on the output side (predicting text with the"
        f" new rows) and by {cost['input']:+.3f} on the input side (reading new tokens)."
        + _unseen_sentence(report)
        + _left_out_sentence(report, names, size),
    ]


def _unseen_sentence(report: EvaluationReport) -> str:
    unseen = report.diagnosis.get("unseen")
    if unseen is None or not {"sft", "vanilla_sft"} <= unseen.bits.keys():
        return ""
    size = sum(text.bytes for text in report.diagnosis.values())
    difference = (unseen.bits["sft"] - unseen.bits["vanilla_sft"]) / size
    if difference < 0.0005:
        return ""
    return (
        f" New tokens that the training text does not contain account for {difference:+.3f} of the difference between"
        " the fine-tuned model and the vanilla baseline. Fewer new tokens (`--max-candidates`) or more text reduce it."
    )


def _left_out_sentence(report: EvaluationReport, names: Sequence[str], size: int) -> str:
    """What the diagnosis does not cover."""
    missing = [f"`{name}`" for name in OTHER_MODELS if name in report.variants and name not in names]
    text = f" Not comparable piece by piece: {', '.join(missing)} (another tokenizer)." if missing else ""
    if size != report.heldout_bytes:
        text += (
            f" Documents that the base tokenizer does not encode exactly are left out; {size:,} of"
            f" {report.heldout_bytes:,} bytes remain."
        )
    return text


def _retention(report: EvaluationReport) -> list[str]:
    retention, title = report.retention, "## Forgetting"
    if retention is None:
        return []
    if retention.skipped:
        return [title, f"Not measured: {retention.skipped}"]
    rows = []
    for name, each in retention.bpb.items():
        change = retention.forgetting.get(name)
        figures = (f"{each.value:.4f}", f"{each.low:.3f} to {each.high:.3f}")
        rows.append((f"`{name}`", *figures, "" if change is None else _percent(change, sign=True)))
    rough = " (few documents: the intervals are rough)" if retention.documents < FEW_DOCUMENTS else ""
    return [
        title,
        f"Bits per byte on out-of-domain text: {retention.source}, {retention.documents:,} documents,"
        f" {retention.bytes:,} bytes{rough}.",
        table(("variant", "BPB", "95 % interval", "against base"), rows, right_from=1),
    ]


def _speed(report: EvaluationReport) -> list[str]:
    if not report.speeds:
        return []
    speeds, rows = report.bytes_per_second, []
    for name, speed in report.speeds.items():
        ratio = f"{speeds[name] / speeds['base']:.2f}" if "base" in speeds else ""
        rows.append((f"`{name}`", f"{speed.tokens:,.1f}", f"{speeds[name]:,.0f}", ratio, f"{speed.bytes:,.0f}"))
    header = ("variant", "tokens per second", "bytes per second", "against base", "bytes per second, generated")
    return [
        "## Speed",
        table(header, rows, right_from=1),
        "Bytes per second are tokens per second times bytes per token of the held-out text. The last column counts the"
        " bytes that were generated while timing (greedily); it varies more, because models that repeat themselves may"
        " repeat long or short tokens. Measured on this machine under its current load; not reproducible.",
    ]


def _tokenizer_table(report: EvaluationReport) -> str:
    used = f"{report.new_tokens_used:,} of {report.new_tokens:,} ({_percent(report.new_tokens_used_share)})"
    rows = [
        ("token saving", _percent(report.token_saving)),
        ("agreement of the distilled tokenizer", _percent(report.agreement, 3)),
        ("documents decoded exactly", _percent(report.round_trip, 2)),
        ("new tokens that occur in the held-out text", used),
    ]
    return table(("figure", "value"), rows, right_from=1)


def _bpe_form(report: EvaluationReport) -> list[str]:
    form = report.bpe_form
    if form is None:
        return []
    same = "The BPE form of the tokenizer, which runs in more inference engines, gives the same ids"
    if not form.documents_differing:
        return [f"{same} on all held-out text."]
    difference = form.bpb - report.variants["sft"].bpb
    return [
        f"{same} to {_percent(form.agreement, 3)} of the pre-tokens; {form.documents_differing:,} of"
        f" {report.heldout_documents:,} documents differ. With it the fine-tuned model has {form.bpb:.4f} BPB"
        f" ({difference:+.4f})."
    ]


def _samples(report: EvaluationReport) -> list[str]:
    written = [(name, variant.continuations) for name, variant in report.ordered() if variant.continuations]
    if not report.prompts or not written:
        return []
    parts = ["## Samples", "Greedy continuations of prompts from the held-out text. Not a quality measure."]
    for number, prompt in enumerate(report.prompts):
        rows = [(f"`{name}`", code(texts[number])) for name, texts in written if number < len(texts)]
        parts += [f"### Prompt {code(prompt)}", table(("variant", "continuation"), rows)]
    return parts


def settings_table(report: EvaluationReport) -> str:
    """The settings of the run."""
    return table(("setting", "value"), [(key, code(str(value))) for key, value in report.settings.items()])


def hyperparameters(report: EvaluationReport) -> list[str]:
    """The training settings of every trained variant, with those at the top in which they differ."""
    trained = report.hyperparameters
    names = sorted({key for values in trained.values() for key in values})
    texts = {key: ["–" if key not in values else str(values[key]) for values in trained.values()] for key in names}
    rows = [(key, *map(code, texts[key])) for key in sorted(names, key=lambda key: (len(set(texts[key])) == 1, key))]
    return ["## Training settings", table(("setting", *(f"`{name}`" for name in trained)), rows)] if rows else []


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right_from: int | None = None) -> str:
    """A Markdown table; columns from `right_from` on are right-aligned."""
    rule = ["---:" if right_from is not None and column >= right_from else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def code(text: str) -> str:
    """Any text as Markdown code on one line, safe inside tables."""
    line = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text.replace("\n", "⏎")).replace("|", "¦")
    if not line.strip():
        return "(whitespace only)" if line else "(empty)"
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}"


def _percent(share: float, decimals: int = 1, *, sign: bool = False) -> str:
    return f"{100 * share:{'+' if sign else ''}.{decimals}f} %"
