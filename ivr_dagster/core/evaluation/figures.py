"""The figures of an evaluation: what was measured of every variant, as values and as JSON.

What belongs here: the values and what follows from them alone. Where they come from is the business of
`bits_per_byte`, `intervals`, `token_groups`, `continuations` and the tokenizer stem; how people see them that of
`report` and `plots`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ivr_dagster.core.evaluation.bits_per_byte import BitsPerByte
from ivr_dagster.core.evaluation.continuations import Speed
from ivr_dagster.core.evaluation.intervals import Interval
from ivr_dagster.core.evaluation.token_groups import TokenGroup
from ivr_dagster.errors import InputError

# name → what it is; the order of every table and plot
VARIANTS = {
    "base": "base model, base tokenizer",
    "distilled": "base model, distilled tokenizer",
    "initialized": "initialized model, new vocabulary",
    "sft": "fine-tuned model, new vocabulary",
    "vanilla_sft": "vanilla baseline on the same text (equal bytes): base model fine-tuned with its own tokenizer",
    "vanilla_compute_sft": "vanilla baseline on equal compute: base model fine-tuned with its own tokenizer on as many"
    " tokens as the adapted model",
}


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
        interval: 95 % interval of `bpb` over documents, where it was taken.
        groups: losses on `kept` and `new` tokens, for variants with the new vocabulary.
        new_tokens_written: share of new tokens in what it wrote, for variants with the new vocabulary that wrote.
        shortened: tokens that were read with less text before them than the other variants had.
    """

    name: str
    bpb: float
    bytes_per_token: float
    tokens: int
    bytes: int
    continuations: tuple[str, ...] = ()
    interval: Interval | None = None
    groups: Mapping[str, TokenGroup] = field(default_factory=dict)
    new_tokens_written: float | None = None
    shortened: int = 0

    @classmethod
    def of(cls, name: str, scored: BitsPerByte, continuations: Sequence[str] = (), **more: Any) -> "Variant":
        """The variant that `scored` was measured on; `more` are further attributes."""
        return cls(
            name,
            scored.bpb,
            scored.bytes_per_token,
            scored.tokens,
            scored.bytes,
            tuple(continuations),
            shortened=scored.shortened,
            **more,
        )


@dataclass(frozen=True)
class Retention:
    """What is left of what the base model could do: bits per byte on text of another domain.

    Attributes:
        source: which text, in words.
        documents: how many.
        bytes: UTF-8 bytes of their text.
        bpb: variant → bits per byte with its interval.
        skipped: why there are no figures, a sentence; empty where there are.
    """

    source: str = ""
    documents: int = 0
    bytes: int = 0
    bpb: Mapping[str, Interval] = field(default_factory=dict)
    skipped: str = ""

    @property
    def rises(self) -> dict[str, float]:
        """Variant → its bits per byte over the base model's, less 1: 0.1 is ten percent worse."""
        base = self.bpb.get("base")
        if base is None:
            return {}
        return {name: each.value / base.value - 1 for name, each in self.bpb.items() if name != "base"}


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
class LearningCurve:
    """Bits per byte on validation text while a model was trained, against what it had read by then.

    Attributes:
        tokens_seen: tokens trained on, repetitions counted: the compute, for models of one architecture and one
            vocabulary size, to which a token costs the same whatever it stands for.
        bytes_seen: UTF-8 bytes of text trained on, repetitions counted.
        bits_per_byte: at those places.
    """

    tokens_seen: tuple[float, ...]
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
        differences: (variant, against) → the first one's BPB less the second's, with its interval.
        context_bytes: bytes of text that every model had before a token at most; None: contexts in tokens.
        retention: bits per byte on text of another domain; None where nobody asked.
        learning: variant → its validation during training.
        speeds: variant → what it writes in a second, greedily. Not the same twice.
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
    differences: Mapping[tuple[str, str], Interval] = field(default_factory=dict)
    context_bytes: int | None = None
    retention: Retention | None = None
    learning: Mapping[str, LearningCurve] = field(default_factory=dict)
    speeds: Mapping[str, Speed] = field(default_factory=dict)

    @property
    def bytes_per_second(self) -> dict[str, float]:
        """Variant → bytes a second where it writes text like the held-out one: tokens a second times bytes a token."""
        return {name: speed.tokens * self.variants[name].bytes_per_token for name, speed in self.speeds.items()}

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


def learning_curve(
    validation: Sequence[tuple[int, float]], *, tokens_per_step: float, bytes_per_token: float
) -> LearningCurve:
    """A run's validation against what it had read.

    Args:
        validation: (step, bits per byte).
        tokens_per_step: tokens trained on in a step.
        bytes_per_token: of the run's tokenizer on the training text.
    """
    tokens = tuple(step * tokens_per_step for step, _ in validation)
    return LearningCurve(
        tokens, tuple(count * bytes_per_token for count in tokens), tuple(float(bpb) for _, bpb in validation)
    )


def pairs_to_compare(variants: Sequence[str]) -> list[tuple[str, str]]:
    """Which differences are worth an interval: everything against the base model, fine-tuned against the baselines."""
    pairs = [(name, "base") for name in variants if name != "base" and "base" in variants]
    return pairs + [("sft", name) for name in variants if name.startswith("vanilla") and "sft" in variants]


def reproducible(values: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of :func:`as_json` that the same models and texts always give: all but timings."""
    return {key: value for key, value in values.items() if key != "timings"}


def as_json(report: EvaluationReport) -> dict[str, Any]:
    """The report as JSON values: `variants.<name>.{bpb,bytes_per_token,tokens,bytes,continuations}` and the rest.

    `differences` is a list of {variant, against, difference, low, high}; `timings` is all that differs from one
    evaluation of the same models to the next.

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
                "shortened_tokens": variant.shortened,
            }
            | ({"low": variant.interval.low, "high": variant.interval.high} if variant.interval else {})
            | (
                {"token_groups": {key: asdict(group) for key, group in variant.groups.items()}}
                if variant.groups
                else {}
            )
            | (
                {"new_tokens_written_share": variant.new_tokens_written}
                if variant.new_tokens_written is not None
                else {}
            )
            for name, variant in in_order(report)
        },
        "differences": [
            {
                "variant": variant,
                "against": against,
                "difference": interval.value,
                "low": interval.low,
                "high": interval.high,
            }
            for (variant, against), interval in report.differences.items()
        ],
        "context_bytes": report.context_bytes,
        "token_saving": report.token_saving,
        "agreement": report.agreement,
        "round_trip": report.round_trip,
        "new_tokens": report.new_tokens,
        "new_tokens_used": report.new_tokens_used,
        "new_tokens_used_share": report.new_tokens_used_share,
        "heldout": {"documents": report.heldout_documents, "bytes": report.heldout_bytes},
        "prompts": list(report.prompts),
        "settings": dict(report.settings),
        "retention": _retention_json(report.retention),
        "validation": {name: {k: list(v) for k, v in asdict(curve).items()} for name, curve in report.learning.items()},
        "timings": {
            name: {
                "tokens_per_second": speed.tokens,
                "bytes_per_second": report.bytes_per_second[name],
                "bytes_per_second_greedy": speed.bytes,
            }
            for name, speed in report.speeds.items()
        },
    }
    _refuse_infinite(result, "")
    return result


def _retention_json(retention: Retention | None) -> dict[str, Any] | None:
    if retention is None:
        return None
    rises = retention.rises
    return {
        "text": retention.source,
        "documents": retention.documents,
        "bytes": retention.bytes,
        "skipped": retention.skipped,
        "variants": {
            name: {"bpb": each.value, "low": each.low, "high": each.high}
            | ({"rise": rises[name]} if name in rises else {})
            for name, each in retention.bpb.items()
        },
    }


def in_order(report: EvaluationReport) -> list[tuple[str, Variant]]:
    """The variants by name, in the order of every table and plot."""
    known = [name for name in VARIANTS if name in report.variants]
    return [(name, report.variants[name]) for name in [*known, *(n for n in report.variants if n not in VARIANTS)]]


def _refuse_infinite(value: Any, key: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"the figure is {value}", where=key, remedy="Look at the stage train: did the run diverge?")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_infinite(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _refuse_infinite(inner, f"{key}.{number}")
