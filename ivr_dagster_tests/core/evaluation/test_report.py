"""The report's figures as JSON, as Markdown and as plots."""

import json
import math
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from ivr_dagster.core.evaluation.continuations import Speed
from ivr_dagster.core.evaluation.diagnosis import DiagnosedText
from ivr_dagster.core.evaluation.evaluate import training_curves
from ivr_dagster.core.evaluation.figures import (
    EvaluationReport,
    Retention,
    TrainingCurve,
    Variant,
    as_json,
    pairs_to_compare,
    reproducible_part,
)
from ivr_dagster.core.evaluation.intervals import Interval
from ivr_dagster.core.evaluation.plots import plots
from ivr_dagster.core.evaluation.report import as_markdown, summary, verdict, write_report
from ivr_dagster.core.evaluation.token_groups import TokenGroup
from ivr_dagster.core.training.folders import TrainedModel
from ivr_dagster.errors import InputError


def report(**bpb: float) -> EvaluationReport:
    return EvaluationReport(
        variants={name: Variant(value, 4.0, 25, 100, (f"{name} continues",)) for name, value in bpb.items()},
        token_saving=0.25,
        agreement=0.99987,
        round_trip=1.0,
        new_tokens=8,
        new_tokens_used=6,
        heldout_documents=3,
        heldout_bytes=100,
        prompts=("Once",),
        settings={"context": 1024},
    )


def interval(value: float, width: float = 0.02) -> Interval:
    return Interval(value, value - width, value + width)


FULL = report(base=1.5, distilled=1.501, initialized=2.0, sft=1.35, vanilla_sft=1.2)
# with everything that a report can contain
RICH = replace(
    FULL,
    variants={
        **{name: replace(variant, interval=interval(variant.bpb)) for name, variant in FULL.variants.items()},
        "sft": replace(
            FULL.variants["sft"],
            interval=interval(1.35),
            groups={"kept": TokenGroup(20, 0.8, 60, 4.0, 1.5), "new": TokenGroup(5, 0.2, 40, 9.0, 1.125)},
            new_tokens_written=0.25,
            shortened=1,
        ),
        "vanilla_compute_sft": Variant(1.4, 3.0, 33, 100, interval=interval(1.4)),
    },
    differences={("sft", "base"): interval(-0.15), ("sft", "vanilla_compute_sft"): interval(-0.05, 0.1)},
    heldout_documents=30,
    context_bytes=1500,
    retention=Retention("the works of Shakespeare", 20, 5000, {"base": interval(2.0), "sft": interval(2.2),
                                                             "vanilla_sft": interval(1.9)}),
    validation={"sft": TrainingCurve((1e6, 2e6), (4e6, 8e6), (1.6, 1.4)),
                "vanilla_sft": TrainingCurve((1e6,), (3e6,), (1.5,))},
    speeds={"base": Speed(10.0, 35.0), "sft": Speed(9.0, 50.0)},
)  # fmt: skip


def test_json_has_the_keys_of_the_contract() -> None:
    values = json.loads(json.dumps(as_json(FULL), allow_nan=False))
    assert list(values["variants"]) == ["base", "distilled", "initialized", "sft", "vanilla_sft"]
    assert (values["variants"]["sft"]["bpb"], values["variants"]["sft"]["bytes_per_token"]) == (1.35, 4.0)
    assert (values["token_saving"], values["agreement"], values["round_trip"]) == (0.25, 0.99987, 1.0)
    assert values["new_tokens_used_share"] == 0.75
    assert values["heldout"] == {"documents": 3, "bytes": 100}
    assert values["settings"] == {"context": 1024}
    assert values["retention"] is None


def test_json_has_intervals_groups_retention_and_curves() -> None:
    values = json.loads(json.dumps(as_json(RICH), allow_nan=False))
    assert values["differences"][0] == {
        "variant": "sft",
        "against": "base",
        "difference": -0.15,
        "low": pytest.approx(-0.17),
        "high": pytest.approx(-0.13),
    }
    sft = values["variants"]["sft"]
    assert (sft["low"], sft["high"]) == pytest.approx((1.33, 1.37))
    new = {"tokens": 5, "share": 0.2, "bytes": 40, "bits_per_token": 9.0, "bits_per_byte": 1.125}
    assert sft["token_groups"]["new"] == new
    assert (sft["new_tokens_written_share"], sft["shortened_tokens"]) == (0.25, 1)
    assert "token_groups" not in values["variants"]["base"]
    retention = values["retention"]
    assert (retention["text"], retention["documents"], retention["bytes"]) == ("the works of Shakespeare", 20, 5000)
    assert retention["variants"]["sft"]["rise"] == pytest.approx(0.1)
    assert values["validation"]["sft"]["bits_per_byte"] == [1.6, 1.4]
    assert values["context_bytes"] == 1500


def test_timings_do_not_change_the_reproducible_part() -> None:
    other = replace(RICH, speeds={"base": Speed(1.0, 2.0), "sft": Speed(3.0, 4.0)})
    timing = {"tokens_per_second": 3.0, "bytes_per_second": 12.0, "bytes_per_second_greedy": 4.0}
    assert as_json(other)["timings"]["sft"] == timing
    assert as_json(other) != as_json(RICH)
    assert reproducible_part(as_json(other)) == reproducible_part(as_json(RICH))


def test_any_variant_may_be_missing() -> None:
    assert list(as_json(report(base=1.0, initialized=2.0))["variants"]) == ["base", "initialized"]
    for partial in (report(sft=1.0), report(vanilla_sft=1.0), report()):
        assert as_markdown(partial).startswith("# Evaluation")
        assert plots(partial)


@pytest.mark.parametrize(
    ("sft", "base", "vanilla", "expected"),
    [
        (1.2, 1.5, 1.6, ["**20.0 % better** than the base model: 1.200 BPB against 1.500.",
                         "**25.0 % better** than the vanilla baseline"]),
        (1.5, 1.2, 1.25, ["**25.0 % worse** than the base model", "**20.0 % worse** than the vanilla baseline"]),
        (1.2, 1.2, 9.5, ["exactly as good as the base model", "**Worse than chance:** `vanilla_sft` 9.50."]),
    ],
)  # fmt: skip
def test_summary_compares_the_fine_tuned_model(sft: float, base: float, vanilla: float, expected: list[str]) -> None:
    text = " ".join(summary(report(base=base, sft=sft, vanilla_sft=vanilla)))
    assert all(each in text for each in expected)
    assert ("Worse than chance" in text) == (vanilla > 8)


@pytest.mark.parametrize(
    ("bpb", "difference", "expected"),
    [
        ({"base": 1.5, "sft": 1.2, "vanilla_sft": 1.25}, (-0.05, 0.02),
         "Better than plain fine-tuning on the same text: 4.0 % fewer bits per byte, with 25.0 % fewer tokens."),
        ({"base": 1.5, "sft": 1.3, "vanilla_sft": 1.25}, (0.05, 0.02),
         "Worse than plain fine-tuning on the same text: 4.0 % more bits per byte, with 25.0 % fewer tokens."),
        ({"base": 1.5, "sft": 1.3, "vanilla_sft": 1.25}, (0.05, 0.06),
         "As good as plain fine-tuning on the same text within the accuracy of this text (1.300 against 1.250 BPB), "
         "with 25.0 % fewer tokens."),
        ({"base": 1.5, "sft": 1.2}, None, "Better than the base model: 20.0 % fewer bits per byte, with 25.0 % fewer"
         " tokens."),
        ({"base": 1.5, "initialized": 1.2}, None, ""),
    ],
)  # fmt: skip
def test_verdict(bpb: dict[str, float], difference: tuple[float, float] | None, expected: str) -> None:
    known = {("sft", "vanilla_sft"): interval(*difference)} if difference else {}
    assert verdict(replace(report(**bpb), differences=known)) == expected


def test_training_settings_that_differ_come_first() -> None:
    trained = {"sft": {"epochs": 3, "learning_rate": 2e-4, "new_row_rate": 5}, "vanilla_sft": {"epochs": 3, "lr": 1}}
    text = as_markdown(replace(FULL, hyperparameters=trained))
    section = text[text.index("## Training settings") :].splitlines()[2:]
    assert section[0] == "| setting | `sft` | `vanilla_sft` |"
    assert section[3] == "| lr | ` – ` | ` 1 ` |"
    assert section[-1] == "| epochs | ` 3 ` | ` 3 ` |"


def test_summary_has_intervals_significance_new_tokens_speed_and_forgetting() -> None:
    paragraphs = summary(RICH)
    assert "1.350 BPB against 1.500 (difference -0.150, 95 % interval -0.170 to -0.130)." in paragraphs[1]
    assert ["not significant" in each for each in paragraphs[1:4]] == [False, False, True]
    assert "20.0 % of the tokens of the held-out text and 25.0 % of the tokens" in paragraphs[4]
    assert "1.12 bits per byte of new tokens, 1.50 per byte of kept tokens" in paragraphs[4]
    assert "0.90 times as fast as the base model: 36 against 40 bytes per second" in paragraphs[5]
    assert "(the works of Shakespeare) changed by +10.0 % for the fine-tuned model, -5.0 % for the" in paragraphs[6]
    assert len(paragraphs) == 7


def test_markdown_tables_have_the_figures_in_order() -> None:
    text = as_markdown(RICH, {"validation_by_compute": "plots/x.png"})
    for row in (
        "| `sft` | fine-tuned model, new vocabulary | 1.3500 | 1.330 to 1.370 | -10.0 % | 4.000 | 25 |",
        "| `sft` | `base` | -0.1500 | -0.1700 to -0.1300 | yes |",
        "| `sft` | `vanilla_compute_sft` | -0.0500 | -0.1500 to +0.0500 | no |",
        "| `sft` | new | 5 | 20.0 % | 9.000 | 1.125 |",
        "| `sft` | 2.2000 | 2.180 to 2.220 | +10.0 % |",
        "| `sft` | 9.0 | 36 | 0.90 | 50 |",
        "| new tokens that occur in the held-out text | 6 of 8 (75.0 %) |",
        "at most 1,500 bytes of text before a token",
        "`sft` 4.00 %",
        "](plots/x.png)",
        "### Prompt ` Once `",
        "| `vanilla_sft` | ` vanilla_sft continues ` |",
    ):
        assert row in text, row
    titles = ("The new vocabulary", "## Quality", "## New and", "## Forgetting", "## Speed", "## Plots", "## Samples")
    order = [text.index(each) for each in titles]
    assert order == sorted(order)


def test_the_diagnosis_adds_up_over_kinds_and_sides() -> None:
    own = {"output_side": 90.0}
    bits = dict.fromkeys(("base", "output_side", "initialized", "sft", "vanilla_sft"), 90.0)
    kept = DiagnosedText(60, bits | {"output_side": 96.0})
    unseen = DiagnosedText(40, bits | {"output_side": 110.0, "initialized": 120.0, "sft": 70.0, "vanilla_sft": 50.0})
    text = as_markdown(replace(FULL, diagnosis={"kept": kept, "unseen": unseen}))
    for expected in (
        "| kept tokens | 60.0 % | 1.500 | 1.600 | 1.500 | 1.500 | 1.500 |",
        "| new tokens that the training text does not contain | 40.0 % | 2.250 | 2.750 | 3.000 | 1.750 | 1.250 |",
        "| all | 100.0 % | 1.800 | 2.060 | 2.100 | 1.600 | 1.400 |",
        "by +0.260 on the output side (predicting text with the new rows) and by +0.040 on the input side",
        "does not contain account for +0.200 of the difference",
    ):
        assert expected in text, expected
    assert "left out" not in text
    less = as_markdown(replace(FULL, diagnosis={"kept": replace(kept, bits={"base": 90.0, "initialized": 90.0} | own)}))
    assert "Not comparable piece by piece: `sft`, `vanilla_sft` (another tokenizer)." in less
    assert "left out; 60 of 100 bytes remain" in less
    gain = replace(unseen, bits=unseen.bits | {"sft": 40.0})
    assert "account for" not in as_markdown(replace(FULL, diagnosis={"kept": kept, "unseen": gain}))


def test_samples_cannot_break_the_table() -> None:
    for text, expected in (("a|b\n`c` ``d``\u2028\x00", "``` a¦b⏎`c` ``d``   ```"), ("", "(empty)"), ("  ", "(white")):
        markdown = as_markdown(replace(FULL, variants={"sft": replace(FULL.variants["sft"], continuations=(text,))}))
        assert f"| `sft` | {expected}" in markdown


def test_all_variants_are_compared_with_the_base_and_the_fine_tuned_model_with_baselines() -> None:
    assert pairs_to_compare(["base", "sft", "vanilla_sft"]) == [
        ("sft", "base"),
        ("vanilla_sft", "base"),
        ("sft", "vanilla_sft"),
    ]
    assert pairs_to_compare(["sft", "initialized"]) == []


def test_training_curves_use_the_units_of_each_runs_tokenizer(tmp_path: Path) -> None:
    runs = {name: TrainedModel(tmp_path / name) for name in ("sft", "vanilla_sft", "unknown")}
    for run, bytes_per_token in zip(runs.values(), (6.0, 3.0, None), strict=True):
        run.path.mkdir()
        validation = [(10, 1.5)] if run.path.name == "sft" else []
        run.write_history(10, 500, [(5, 2.0)], validation, bytes_per_token=bytes_per_token)
    losses, learned = training_curves(runs)
    assert {name: each.bytes_seen for name, each in losses.items()} == {"sft": (1500,), "vanilla_sft": (750,)}
    assert losses["sft"].bits_per_byte == pytest.approx((2 / math.log(2) / 6,))
    assert learned == {"sft": TrainingCurve((500,), (3000,), (1.5,))}


@pytest.mark.slow
def test_plots_are_reproducible_png_with_error_bars_and_curves() -> None:
    from matplotlib.image import imread

    losses = {"sft": TrainingCurve((0, 0), (1e6, 2e6), (2.0, 1.5)), "vanilla_sft": TrainingCurve((0,), (1e6,), (1.4,))}
    images = plots(replace(RICH, training_loss=losses))
    curves = ["training_loss", "validation_by_text", "validation_by_compute"]
    assert list(images) == ["bpb", "bytes_per_token", *curves]
    assert plots(replace(RICH, training_loss=losses)) == images
    for image in images.values():
        pixels = imread(BytesIO(image), format="png")
        assert pixels.shape[1] == 1050
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 3
    assert len(set(images.values())) == len(images)
    without_intervals = {name: replace(each, interval=None) for name, each in RICH.variants.items()}
    assert images["bpb"] != plots(replace(RICH, variants=without_intervals))["bpb"]


def test_a_report_is_written_with_its_plots(tmp_path: Path) -> None:
    write_report(FULL, tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert files == {"report.json", "report.md", "plots/bpb.png", "plots/bytes_per_token.png"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in text for name in files if name.endswith(".png"))
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == as_json(FULL)


def test_a_figure_that_is_not_finite_is_rejected_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variants\.sft\.bpb: expected a finite figure, found nan"):
        write_report(report(base=1.0, sft=math.nan), tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()
