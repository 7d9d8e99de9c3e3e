"""The figures of an evaluation, as values and as JSON. `report`, `plots` and `model_card` present them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ivr_dagster.core.evaluation.continuations import Speed
from ivr_dagster.core.evaluation.diagnosis import DiagnosedText
from ivr_dagster.core.evaluation.intervals import Interval
from ivr_dagster.core.evaluation.token_groups import TokenGroup
from ivr_dagster.core.scoring.bits_per_byte import BitsPerByte
from ivr_dagster.errors import InputError

# variant → description, in the order of tables and plots
VARIANTS = {
    "base": "base model, base tokenizer",
    "distilled": "base model, distilled tokenizer",
    "initialized": "initialized model, new vocabulary",
    "sft": "fine-tuned model, new vocabulary",
    "vanilla_sft": "vanilla baseline, same text: base model fine-tuned with its own tokenizer",
    "vanilla_compute_sft": "vanilla baseline, same compute: base model fine-tuned with its own tokenizer on as many"
    " tokens as the adapted model",
}
# those of them whose model differs from the base
OTHER_MODELS = tuple(name for name in VARIANTS if name not in ("base", "distilled"))


@dataclass(frozen=True)
class Variant:
    """A model with a tokenizer, measured on the held-out text.

    Attributes:
        bpb: bits per byte.
        bytes_per_token: `bytes / tokens`.
        tokens, bytes: size of the text.
        continuations: text generated after each of the report's prompts.
        interval: 95 % interval of `bpb` over documents.
        groups: losses of `kept` and `new` tokens, for variants with the new vocabulary.
        new_tokens_written: share of new tokens in the continuations, for variants with the new vocabulary.
        shortened: tokens with less context than other variants had, see `windows`.
    """

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
    def from_score(cls, score: BitsPerByte, **others: Any) -> "Variant":
        """The variant with this score; `others` are further attributes."""
        return cls(score.bpb, score.bytes_per_token, score.tokens, score.bytes, shortened=score.shortened, **others)


@dataclass(frozen=True)
class Retention:
    """How much fine-tuning forgot: bits per byte on out-of-domain text.

    Attributes:
        source: description of the text.
        documents, bytes: size of the text.
        bpb: variant → bits per byte with interval.
        skipped: a sentence that says why it was not measured; empty if it was measured.
    """

    source: str = ""
    documents: int = 0
    bytes: int = 0
    bpb: Mapping[str, Interval] = field(default_factory=dict)
    skipped: str = ""

    @property
    def forgetting(self) -> dict[str, float]:
        """Variant → relative increase of bits per byte over the base model: 0.1 is ten percent worse."""
        base = self.bpb.get("base")
        if base is None:
            return {}
        return {name: each.value / base.value - 1 for name, each in self.bpb.items() if name != "base"}


@dataclass(frozen=True)
class BpeForm:
    """The fine-tuned model with the BPE form of the tokenizer that it was trained with.

    Attributes:
        agreement: share of held-out pre-token occurrences with the same ids in both forms.
        documents_differing: held-out documents in which any id differs.
        bpb: bits per byte with the BPE form.
    """

    agreement: float
    documents_differing: int
    bpb: float


@dataclass(frozen=True)
class TrainingCurve:
    """Training or validation loss against tokens and text read, in units comparable between tokenizers.

    Attributes:
        tokens_seen: tokens trained on, including repetitions. A token costs all variants the same compute.
        bytes_seen: UTF-8 bytes of text trained on, including repetitions.
        bits_per_byte: loss at these points.
    """

    tokens_seen: tuple[float, ...]
    bytes_seen: tuple[float, ...]
    bits_per_byte: tuple[float, ...]

    @classmethod
    def from_steps(
        cls, points: Sequence[tuple[int, float]], *, tokens_per_step: float, bytes_per_token: float
    ) -> "TrainingCurve":
        """The curve of (step, bits per byte) points; `bytes_per_token` is that of the training text."""
        tokens = tuple(step * tokens_per_step for step, _ in points)
        return cls(tokens, tuple(count * bytes_per_token for count in tokens), tuple(float(bpb) for _, bpb in points))


def to_bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """A loss in nats per token as bits per byte."""
    return nats_per_token / math.log(2) / bytes_per_token


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that an evaluation measured.

    Attributes:
        variants: name → variant; any may be missing.
        token_saving: 1 − tokens(new tokenizer) / tokens(base tokenizer) on the text that the variants are measured on.
        agreement: share of pre-token occurrences with the same ids under the distilled and the base tokenizer.
        round_trip: share of held-out documents that the new tokenizer decodes exactly.
        new_tokens: number of new tokens.
        new_tokens_used: how many of them occur in the held-out text.
        heldout_documents, heldout_bytes: size of the held-out text.
        prompts: what the continuations continue.
        settings: settings of the run, as JSON values.
        differences: (variant, reference) → BPB of the variant minus that of the reference.
        context_bytes: maximum bytes of text before a token, for every variant.
        retention: forgetting; None if not requested.
        training_loss, validation: variant → curve during training.
        speeds: variant → generation speed. Not reproducible.
        bpe_form: the fine-tuned model with the BPE form of its tokenizer; None if it was trained with that one.
        hyperparameters: trained variant → its training settings, as JSON values.
        diagnosis: kind of held-out text → what every variant needs for it, see `diagnosis`.
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
    training_loss: Mapping[str, TrainingCurve] = field(default_factory=dict)
    validation: Mapping[str, TrainingCurve] = field(default_factory=dict)
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    bpe_form: BpeForm | None = None
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    diagnosis: Mapping[str, DiagnosedText] = field(default_factory=dict)

    @property
    def bytes_per_second(self) -> dict[str, float]:
        """Variant → bytes generated per second: tokens per second · bytes per token of the held-out text."""
        return {name: speed.tokens * self.variants[name].bytes_per_token for name, speed in self.speeds.items()}

    @property
    def new_tokens_used_share(self) -> float:
        """`new_tokens_used / new_tokens`, 0 without new tokens."""
        return self.new_tokens_used / self.new_tokens if self.new_tokens else 0.0

    def ordered(self) -> list[tuple[str, Variant]]:
        """The variants in the order of tables and plots."""
        return [(name, self.variants[name]) for name in VARIANTS if name in self.variants]


def pairs_to_compare(variants: Sequence[str]) -> list[tuple[str, str]]:
    """(variant, reference) pairs: every variant against the base model, the fine-tuned model against the baselines."""
    pairs = [(name, "base") for name in variants if name != "base" and "base" in variants]
    return pairs + [("sft", name) for name in variants if name.startswith("vanilla") and "sft" in variants]


def reproducible_part(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reproducible part of :func:`as_json`, which depends only on models and texts: everything but timings."""
    return {key: value for key, value in values.items() if key != "timings"}


def as_json(report: EvaluationReport) -> dict[str, Any]:
    """The report as JSON values, the content of `report.json`.

    Raises:
        InputError: a figure is not finite.
    """
    values: dict[str, Any] = {
        "variants": {name: _variant_json(variant) for name, variant in report.ordered()},
        "differences": [
            {"variant": variant, "against": reference, "difference": each.value, "low": each.low, "high": each.high}
            for (variant, reference), each in report.differences.items()
        ],
        "context_bytes": report.context_bytes,
        "token_saving": report.token_saving,
        "agreement": report.agreement,
        "round_trip": report.round_trip,
        "bpe_form": asdict(report.bpe_form) if report.bpe_form else None,
        "new_tokens": report.new_tokens,
        "new_tokens_used": report.new_tokens_used,
        "new_tokens_used_share": report.new_tokens_used_share,
        "heldout": {"documents": report.heldout_documents, "bytes": report.heldout_bytes},
        "diagnosis": {kind: asdict(text) for kind, text in report.diagnosis.items()},
        "prompts": list(report.prompts),
        "settings": dict(report.settings),
        "hyperparameters": {name: dict(values) for name, values in report.hyperparameters.items()},
        "retention": _retention_json(report.retention) if report.retention else None,
        "validation": {name: {k: list(v) for k, v in asdict(each).items()} for name, each in report.validation.items()},
        "timings": {
            name: {
                "tokens_per_second": speed.tokens,
                "bytes_per_second": report.bytes_per_second[name],
                "bytes_per_second_greedy": speed.bytes,
            }
            for name, speed in report.speeds.items()
        },
    }
    _check_finite(values, "")
    return values


def _variant_json(variant: Variant) -> dict[str, Any]:
    values = {
        "bpb": variant.bpb,
        "bytes_per_token": variant.bytes_per_token,
        "tokens": variant.tokens,
        "bytes": variant.bytes,
        "continuations": list(variant.continuations),
        "shortened_tokens": variant.shortened,
    }
    if variant.interval:
        values |= {"low": variant.interval.low, "high": variant.interval.high}
    if variant.groups:
        values |= {"token_groups": {key: asdict(group) for key, group in variant.groups.items()}}
    if variant.new_tokens_written is not None:
        values |= {"new_tokens_written_share": variant.new_tokens_written}
    return values


def _retention_json(retention: Retention) -> dict[str, Any]:
    return {
        "text": retention.source,
        "documents": retention.documents,
        "bytes": retention.bytes,
        "skipped": retention.skipped,
        "variants": {
            name: {"bpb": each.value, "low": each.low, "high": each.high}
            | ({"rise": retention.forgetting[name]} if name in retention.forgetting else {})
            for name, each in retention.bpb.items()
        },
    }


def _check_finite(value: Any, key: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        remedy = "Check whether training diverged (stage train)."
        raise InputError(f"expected a finite figure, found {value}", where=key, remedy=remedy)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        _check_finite(inner, f"{key}.{name}" if key else str(name))
