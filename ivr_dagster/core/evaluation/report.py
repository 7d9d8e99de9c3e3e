"""The evaluation report: its values, and their forms as JSON, Markdown and plots.

What belongs here: putting figures side by side and saying in plain words what they mean. Where they come from is the
business of `bits_per_byte`, `continuations` and the tokenizer stem.
"""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ivr_dagster.core.errors import InputError
from ivr_dagster.core.evaluation.bits_per_byte import BitsPerByte

# name → what it is; the order of every table and plot
VARIANTS = {
    "base": "base model, base tokenizer",
    "distilled": "base model, distilled tokenizer",
    "initialized": "initialized model, new vocabulary",
    "sft": "fine-tuned model, new vocabulary",
    "vanilla_sft": "vanilla baseline: base model fine-tuned with its own tokenizer",
}
# Okabe and Ito's palette, which people with any colour vision can tell apart (https://jfly.uni-koeln.de/color/)
_COLOURS = {
    "base": "#999999",
    "distilled": "#56B4E9",
    "initialized": "#E69F00",
    "sft": "#0072B2",
    "vanilla_sft": "#D55E00",
}
# from one seed to the next the BPB of a fine-tuned model moves by about this much
_SEED_NOISE = 0.05


@dataclass(frozen=True)
class Variant:
    """One model with one tokenizer, on the held-out text.

    Attributes:
        name: one of `VARIANTS`.
        bpb: bits per byte.
        bytes_per_token: UTF-8 bytes of the text over its tokens.
        tokens: tokens of the text.
        bytes: UTF-8 bytes of the text; the same for all variants.
        continuations: what the model wrote after each of the report's prompts; empty where it was not asked.
    """

    name: str
    bpb: float
    bytes_per_token: float
    tokens: int
    bytes: int
    continuations: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, scored: BitsPerByte, continuations: Sequence[str] = ()) -> "Variant":
        """The variant that `scored` was measured on."""
        return cls(name, scored.bpb, scored.bytes_per_token, scored.tokens, scored.bytes, tuple(continuations))


@dataclass(frozen=True)
class LossCurve:
    """Training loss against the text seen, in units that do not depend on the tokenizer.

    Attributes:
        bytes_seen: UTF-8 bytes of text trained on so far, repetitions counted.
        bits_per_byte: training loss at those places.
    """

    bytes_seen: tuple[float, ...]
    bits_per_byte: tuple[float, ...]


@dataclass(frozen=True)
class EvaluationReport:
    """Everything the report tells.

    Attributes:
        variants: by name; any may be missing.
        token_saving: 1 − tokens(new tokenizer) / tokens(base tokenizer) on the held-out text.
        agreement: share of pre-token occurrences whose ids the distilled tokenizer gives as the base tokenizer does.
        round_trip: share of held-out documents that the new tokenizer gives back byte by byte.
        new_tokens: how many ids were given to new tokens.
        new_tokens_used: how many of those the held-out text needs.
        heldout_documents: documents of the held-out text.
        heldout_bytes: its UTF-8 bytes.
        prompts: what the models were asked to go on with.
        settings: how it was measured, and of what; plain JSON values.
    """

    variants: Mapping[str, Variant]
    token_saving: float
    agreement: float
    round_trip: float
    new_tokens: int
    new_tokens_used: int
    heldout_documents: int
    heldout_bytes: int
    prompts: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def new_tokens_used_share(self) -> float:
        """`new_tokens_used / new_tokens`, 0 where there are no new tokens."""
        return self.new_tokens_used / self.new_tokens if self.new_tokens else 0.0


def loss_curve(history: Sequence[tuple[int, float]], *, tokens_per_step: float, bytes_per_token: float) -> LossCurve:
    """A run's loss in bits per byte of text.

    Args:
        history: (step, nats per token), as `SftResult.loss_history`.
        tokens_per_step: `SftResult.tokens / SftResult.steps`.
        bytes_per_token: of the run's tokenizer on the training text.
    """
    return LossCurve(
        tuple(step * tokens_per_step * bytes_per_token for step, _ in history),
        tuple(loss / math.log(2) / bytes_per_token for _, loss in history),
    )


def as_json(report: EvaluationReport) -> dict[str, Any]:
    """The report as JSON values: `variants.<name>.{bpb,bytes_per_token,tokens,bytes,continuations}` and the rest.

    Raises:
        InputError: a figure that is no finite number.
    """
    result: dict[str, Any] = {
        "variants": {
            name: {
                "bpb": variant.bpb,
                "bytes_per_token": variant.bytes_per_token,
                "tokens": variant.tokens,
                "bytes": variant.bytes,
                "continuations": list(variant.continuations),
            }
            for name, variant in _in_order(report)
        },
        "token_saving": report.token_saving,
        "agreement": report.agreement,
        "round_trip": report.round_trip,
        "new_tokens": report.new_tokens,
        "new_tokens_used": report.new_tokens_used,
        "new_tokens_used_share": report.new_tokens_used_share,
        "heldout": {"documents": report.heldout_documents, "bytes": report.heldout_bytes},
        "prompts": list(report.prompts),
        "settings": dict(report.settings),
    }
    _refuse_infinite(result, "")
    return result


def as_markdown(report: EvaluationReport, plot_paths: Mapping[str, str] | None = None) -> str:
    """The report for people: what came out in plain words, the tables, the plots, samples side by side.

    Args:
        report: the values.
        plot_paths: name of a plot of :func:`plots` → its path, relative to the Markdown file.
    """
    parts = ["# Evaluation", *summary(report), "## Quality", _quality_table(report), _UNITS]
    parts += ["## Tokenizer", _tokenizer_table(report)]
    for name, path in (plot_paths or {}).items():
        parts += [f"![{_PLOT_TITLES.get(name, name)}]({path})"]
    parts += _samples(report)
    if report.settings:
        parts += [
            "## Settings",
            _table(("setting", "value"), [(key, _code(str(value))) for key, value in report.settings.items()]),
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
        sft = variants["sft"].bpb
        if "base" in variants:
            paragraphs.append("The fine-tuned model is " + _comparison(sft, variants["base"].bpb, "the base model"))
        if "vanilla_sft" in variants:
            paragraphs.append(
                "It is "
                + _comparison(sft, variants["vanilla_sft"].bpb, "the vanilla baseline")
                + " The baseline is the base model fine-tuned on the same text with its own tokenizer: the difference"
                " is what the new vocabulary costs or brings."
            )
    if report.round_trip < 1:
        paragraphs.append(
            f"**Not every text comes back:** {_percent(1 - report.round_trip)} of the held-out documents differ after"
            " encoding and decoding."
        )
    return paragraphs


def plots(report: EvaluationReport, curves: Mapping[str, LossCurve] | None = None) -> dict[str, bytes]:
    """The plots as PNG, by name: `bpb`, `bytes_per_token` and, where there are curves, `training_loss`.

    Args:
        report: the values.
        curves: variant name → its training loss; `sft` and `vanilla_sft` are usual.
    """
    from matplotlib.figure import Figure

    result = {}
    for name, decimals in (("bpb", 3), ("bytes_per_token", 2)):
        rows = [(variant, float(getattr(value, name))) for variant, value in _in_order(report)][::-1]
        figure = Figure(figsize=(7, 0.5 * len(rows) + 1.1), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(
            [variant for variant, _ in rows],
            [value for _, value in rows],
            color=[_COLOURS.get(variant, "#000000") for variant, _ in rows],
            height=0.7,
        )
        axes.bar_label(bars, fmt=f"%.{decimals}f", padding=4)
        axes.margins(x=0.12)
        axes.set_title(_PLOT_TITLES[name], loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        result[name] = _png(figure)
    drawn = {name: curve for name, curve in (curves or {}).items() if curve.bytes_seen}
    if drawn:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for (name, curve), line in zip(drawn.items(), ("-", "--", ":", "-."), strict=False):
            seen = [count / 1e6 for count in curve.bytes_seen]
            axes.plot(
                seen,
                curve.bits_per_byte,
                line,
                color=_COLOURS.get(name, "#000000"),
                label=name,
                marker="o" if len(seen) == 1 else None,
            )
        axes.set_xlabel("text seen, MB (repetitions counted)")
        axes.set_ylabel("training loss, bits per byte")
        axes.set_title(_PLOT_TITLES["training_loss"], loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False)
        result["training_loss"] = _png(figure)
    return result


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
_PLOT_TITLES = {
    "bpb": "Bits per byte on held-out text (lower is better)",
    "bytes_per_token": "Bytes per token on held-out text (higher is better)",
    "training_loss": "Training loss",
}


def _in_order(report: EvaluationReport) -> list[tuple[str, Variant]]:
    known = [name for name in VARIANTS if name in report.variants]
    return [(name, report.variants[name]) for name in [*known, *(n for n in report.variants if n not in VARIANTS)]]


def _comparison(value: float, other: float, than: str) -> str:
    """'better than <than>: …' with figures, for BPB."""
    if value == other:
        return f"exactly as good as {than}: {value:.3f} BPB."
    word = "better" if value < other else "worse"
    caution = f" One seed: a difference below {_SEED_NOISE} may be chance." if abs(value - other) < _SEED_NOISE else ""
    return (
        f"**{_percent(abs(value - other) / other)} {word}** than {than}: {value:.3f} BPB against {other:.3f}.{caution}"
    )


def _quality_table(report: EvaluationReport) -> str:
    base = report.variants.get("base")
    rows = [
        (
            f"`{name}`",
            VARIANTS.get(name, ""),
            f"{variant.bpb:.4f}",
            f"{100 * (variant.bpb / base.bpb - 1):+.1f} %" if base else "",
            f"{variant.bytes_per_token:.3f}",
            f"{variant.tokens:,}",
        )
        for name, variant in _in_order(report)
    ]
    return _table(("variant", "what it is", "BPB", "against base", "bytes per token", "tokens"), rows, right_from=2)


def _tokenizer_table(report: EvaluationReport) -> str:
    used = f"{report.new_tokens_used:,} of {report.new_tokens:,} ({_percent(report.new_tokens_used_share)})"
    rows = [
        ("token saving", _percent(report.token_saving)),
        ("agreement of the distilled tokenizer", _percent(report.agreement, 3)),
        ("documents that come back exactly", _percent(report.round_trip, 2)),
        ("new tokens that the held-out text uses", used),
    ]
    return _table(("figure", "value"), rows, right_from=1)


def _samples(report: EvaluationReport) -> list[str]:
    written = [(name, variant.continuations) for name, variant in _in_order(report) if variant.continuations]
    if not report.prompts or not written:
        return []
    parts = ["## Samples", "What each model writes after a prompt; a glimpse, not a measure."]
    for number, prompt in enumerate(report.prompts):
        parts += [f"### After {_code(prompt)}" if prompt else "### At the beginning of a document"]
        rows = [(f"`{name}`", _code(texts[number])) for name, texts in written if number < len(texts)]
        parts += [_table(("variant", "continuation"), rows)]
    return parts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right_from: int | None = None) -> str:
    rule = ["---:" if right_from is not None and column >= right_from else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def _code(text: str) -> str:
    """Any text as Markdown code on one line, also in a table."""
    shown = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text.replace("\n", "⏎")).replace("|", "¦")
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    if not shown.strip():
        return "(white space only)" if shown else "(nothing)"
    return f"{fence} {shown} {fence}"


def _percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f} %"


def _png(figure: Any) -> bytes:
    """PNG of 150 dots per inch; the same bytes from the same figure, so without matplotlib's version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _refuse_infinite(value: Any, key: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"the figure is {value}", where=key, remedy="Look at the stage train: did the run diverge?")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_infinite(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _refuse_infinite(inner, f"{key}.{number}")
