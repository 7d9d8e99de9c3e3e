import json
import math
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from ivr_dagster.core.evaluation.bits_per_byte import BitsPerByte
from ivr_dagster.core.evaluation.continuations import Speed
from ivr_dagster.core.evaluation.figures import (
    EvaluationReport,
    LearningCurve,
    LossCurve,
    Retention,
    Variant,
    as_json,
    learning_curve,
    loss_curve,
    pairs_to_compare,
    reproducible,
)
from ivr_dagster.core.evaluation.intervals import Interval
from ivr_dagster.core.evaluation.plots import plots
from ivr_dagster.core.evaluation.report import as_markdown, summary, write_report
from ivr_dagster.core.evaluation.token_groups import TokenGroup
from ivr_dagster.errors import InputError


def report(**bpb: float) -> EvaluationReport:
    variants = {
        name: Variant(name, value, 4.0, 25, 100, (f"{name} goes on",)) for name, value in (bpb or {"base": 1.5}).items()
    }
    return EvaluationReport(
        variants=variants,
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


def test_the_json_has_the_promised_keys() -> None:
    values = json.loads(json.dumps(as_json(FULL), allow_nan=False))
    assert list(values["variants"]) == ["base", "distilled", "initialized", "sft", "vanilla_sft"]
    assert values["variants"]["sft"]["bpb"] == 1.35
    assert values["variants"]["sft"]["bytes_per_token"] == 4.0
    assert (values["token_saving"], values["agreement"], values["round_trip"]) == (0.25, 0.99987, 1.0)
    assert values["new_tokens_used_share"] == 0.75
    assert values["heldout"] == {"documents": 3, "bytes": 100}
    assert values["settings"] == {"context": 1024}


def test_any_variant_may_be_missing() -> None:
    assert list(as_json(report(base=1.0, initialized=2.0))["variants"]) == ["base", "initialized"]
    for partial in (report(sft=1.0), report(vanilla_sft=1.0), replace(FULL, variants={})):
        assert as_markdown(partial).startswith("# Evaluation")


def test_a_variant_takes_its_figures_from_what_was_measured() -> None:
    scored = BitsPerByte(np.array([3.0, 9.0]), np.array([2, 6]), np.array([1, 3]))
    assert Variant.of("sft", scored, ["a"]) == Variant("sft", 1.5, 2.0, 4, 8, ("a",))


@pytest.mark.parametrize(
    ("sft", "base", "vanilla", "wanted"),
    [
        (1.2, 1.5, 1.6, ["**20.0 % better** than the base model: 1.200 BPB against 1.500.",
                         "**25.0 % better** than the vanilla baseline"]),
        (1.5, 1.2, 1.25, ["**25.0 % worse** than the base model", "**20.0 % worse** than the vanilla baseline"]),
        (1.2, 1.2, 1.22, ["exactly as good as the base model", "may be chance"]),
    ],
)  # fmt: skip
def test_the_summary_says_what_is_better_and_what_is_worse(
    sft: float, base: float, vanilla: float, wanted: list[str]
) -> None:
    told = " ".join(summary(report(base=base, sft=sft, vanilla_sft=vanilla)))
    assert all(each in told for each in wanted)
    assert ("may be chance" in told) == ("may be chance" in wanted)


def test_the_summary_says_when_more_tokens_are_needed_or_texts_do_not_come_back() -> None:
    told = " ".join(summary(replace(FULL, token_saving=-0.1, round_trip=0.99)))
    assert "**10.0 % more tokens**" in told
    assert "1.0 % of the held-out documents differ" in told


def test_the_markdown_has_every_figure_the_plots_and_the_samples() -> None:
    text = as_markdown(FULL, {"bpb": "plots/bpb.png"})
    assert "| `sft` | fine-tuned model, new vocabulary | 1.3500 |  | -10.0 % | 4.000 | 25 |" in text
    assert "| new tokens that the held-out text uses | 6 of 8 (75.0 %) |" in text
    assert "](plots/bpb.png)" in text
    assert "### After ` Once `" in text
    assert "| `vanilla_sft` | ` vanilla_sft goes on ` |" in text


def test_samples_cannot_break_the_table() -> None:
    wild = replace(FULL.variants["sft"], continuations=("a|b\n`c` ``d``\u2028\x00",))
    row = next(
        line
        for line in as_markdown(replace(FULL, variants={"sft": wild})).splitlines()
        if line.startswith("| `sft` | `")
    )
    assert row == "| `sft` | ``` a¦b⏎`c` ``d``   ``` |"
    for text, shown in (("", "(nothing)"), ("  ", "(white space only)")):
        variant = replace(wild, continuations=(text,))
        assert f"| `sft` | {shown} |" in as_markdown(replace(FULL, variants={"sft": variant}))


def test_a_loss_in_nats_per_token_becomes_bits_per_byte_of_the_text_seen() -> None:
    curve = loss_curve([(10, math.log(2)), (20, math.log(4))], tokens_per_step=100, bytes_per_token=4.0)
    assert curve.bytes_seen == (4000.0, 8000.0)
    assert curve.bits_per_byte == pytest.approx((0.25, 0.5))


# everything that a report can tell
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
        "vanilla_compute_sft": Variant("vanilla_compute_sft", 1.4, 3.0, 33, 100, interval=interval(1.4)),
    },
    differences={("sft", "base"): interval(-0.15), ("sft", "vanilla_compute_sft"): interval(-0.05, 0.1)},
    heldout_documents=30,
    context_bytes=1500,
    retention=Retention("the works of Shakespeare", 20, 5000, {"base": interval(2.0), "sft": interval(2.2),
                                                             "vanilla_sft": interval(1.9)}),
    learning={"sft": LearningCurve((1e6, 2e6), (4e6, 8e6), (1.6, 1.4)),
              "vanilla_sft": LearningCurve((1e6,), (3e6,), (1.5,))},
    speeds={"base": Speed(10.0, 35.0), "sft": Speed(9.0, 50.0)},
)  # fmt: skip


def test_the_summary_tells_intervals_new_tokens_speed_and_what_was_unlearned() -> None:
    told = summary(RICH)
    assert "1.350 BPB against 1.500 (difference -0.150, 95 % interval -0.170 to -0.130)." in told[1]
    assert "on the same text" in told[2] and "equal bytes" in told[2]
    assert not any("holds zero" in each for each in told[:3])
    assert "The interval holds zero" in told[3]
    assert "on equal compute" in told[3] and "as many tokens" in told[3]
    assert told[4] == (
        "New tokens are 20.0 % of the tokens of the held-out text and 25.0 % of those that the fine-tuned model writes"
        " itself. It needs 1.12 bits for a byte of theirs, 1.50 for one of kept tokens."
    )
    assert "0.90 times as fast as the base model: 36 against 40 bytes a second" in told[5]
    assert told[6] == (
        "On text of another domain (the works of Shakespeare) its bits per byte rose by 10.0 % against the base"
        " model's; those of the vanilla baseline on the same text fell by 5.0 %."
    )
    assert len(told) == 7


def test_the_tables_have_the_same_figures() -> None:
    text = as_markdown(RICH)
    for row in (
        "| `sft` | fine-tuned model, new vocabulary | 1.3500 | 1.330 to 1.370 | -10.0 % | 4.000 | 25 |",
        "| `sft` | `base` | -0.1500 | -0.1700 to -0.1300 | yes |",
        "| `sft` | `vanilla_compute_sft` | -0.0500 | -0.1500 to +0.0500 | no |",
        "| `sft` | new | 5 | 20.0 % | 9.000 | 1.125 |",
        "| `sft` | 2.2000 | 2.180 to 2.220 | +10.0 % |",
        "| `sft` | 9.0 | 36 | 0.90 | 50 |",
        "at most 1,500 bytes of text before a token",
        "`sft` 4.00 %",
    ):
        assert row in text, row
    order = [
        text.index(each) for each in ("The new vocabulary writes", "## Quality", "## New and", "## Other", "## Speed")
    ]
    assert order == sorted(order)


def test_few_documents_make_intervals_rough_and_the_report_says_so() -> None:
    few = replace(RICH, heldout_documents=9)
    assert any("The intervals are rough:** 9 held-out documents" in each for each in summary(few))
    assert "With 9 documents they are rough." in as_markdown(few)
    assert not any("rough" in each for each in [*summary(RICH), as_markdown(RICH)])
    other = replace(RICH, retention=replace(RICH.retention, documents=3))
    assert "3 documents, 5,000 bytes; the intervals are rough" in as_markdown(other)


def test_retention_that_was_not_measured_says_why() -> None:
    text = as_markdown(replace(RICH, retention=Retention("x", skipped="there is no other text.")))
    assert "Not measured: there is no other text." in text
    assert "## Other text" not in as_markdown(FULL)


def test_the_json_has_intervals_groups_retention_and_curves() -> None:
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
    assert sft["token_groups"]["new"] == {
        "tokens": 5,
        "share": 0.2,
        "bytes": 40,
        "bits_per_token": 9.0,
        "bits_per_byte": 1.125,
    }
    assert (sft["new_tokens_written_share"], sft["shortened_tokens"]) == (0.25, 1)
    assert "token_groups" not in values["variants"]["base"]
    retention = values["retention"]
    assert (retention["text"], retention["documents"], retention["bytes"]) == ("the works of Shakespeare", 20, 5000)
    assert retention["variants"]["sft"]["rise"] == pytest.approx(0.1)
    assert values["validation"]["sft"]["bits_per_byte"] == [1.6, 1.4]
    assert values["context_bytes"] == 1500
    assert as_json(FULL)["retention"] is None


def test_timings_are_told_and_decide_nothing() -> None:
    other = replace(RICH, speeds={"base": Speed(1.0, 2.0), "sft": Speed(3.0, 4.0)})
    assert as_json(other)["timings"]["sft"] == {
        "tokens_per_second": 3.0,
        "bytes_per_second": 12.0,
        "bytes_per_second_greedy": 4.0,
    }
    assert as_json(other) != as_json(RICH)
    assert reproducible(as_json(other)) == reproducible(as_json(RICH))


def test_everything_is_compared_with_the_base_and_the_fine_tuned_model_with_the_baselines() -> None:
    assert pairs_to_compare(list(RICH.variants)) == [
        ("distilled", "base"),
        ("initialized", "base"),
        ("sft", "base"),
        ("vanilla_sft", "base"),
        ("vanilla_compute_sft", "base"),
        ("sft", "vanilla_sft"),
        ("sft", "vanilla_compute_sft"),
    ]
    assert pairs_to_compare(["sft", "initialized"]) == []


def test_validation_is_drawn_against_text_and_against_compute() -> None:
    curve = learning_curve([(10, 1.5), (20, 1.25)], tokens_per_step=100, bytes_per_token=4.0)
    assert curve == LearningCurve((1000, 2000), (4000.0, 8000.0), (1.5, 1.25))
    images = plots(RICH)
    assert list(images) == ["bpb", "bytes_per_token", "validation_by_text", "validation_by_compute"]
    assert images["validation_by_text"] != images["validation_by_compute"]
    assert images["bpb"] != plots(replace(RICH, variants=FULL.variants))["bpb"]  # error bars
    assert "compute" in as_markdown(RICH, {"validation_by_compute": "plots/x.png"})


def test_plots_are_png_and_the_same_every_time() -> None:
    from matplotlib.image import imread

    curves = {"sft": LossCurve((1e6, 2e6), (2.0, 1.5)), "vanilla_sft": LossCurve((1e6,), (1.4,))}
    images = plots(FULL, curves)
    assert list(images) == ["bpb", "bytes_per_token", "training_loss"]
    assert plots(FULL, curves) == images
    for image in images.values():
        pixels = imread(BytesIO(image), format="png")
        assert pixels.shape[1] == 1050
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 3
    assert list(plots(FULL)) == ["bpb", "bytes_per_token"]


def test_a_report_is_written_with_its_plots(tmp_path: Path) -> None:
    write_report(FULL, tmp_path / "evaluation", {"sft": LossCurve((1.0, 2.0), (3.0, 2.0))})
    files = {path.relative_to(tmp_path / "evaluation").as_posix() for path in tmp_path.rglob("*.*")}
    assert files == {
        "report.json",
        "report.md",
        "plots/bpb.png",
        "plots/bytes_per_token.png",
        "plots/training_loss.png",
    }
    text = (tmp_path / "evaluation" / "report.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in text for name in files if name.endswith(".png"))
    assert json.loads((tmp_path / "evaluation" / "report.json").read_text(encoding="utf-8")) == as_json(FULL)


def test_a_figure_that_is_no_number_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variants\.sft\.bpb: the figure is nan"):
        write_report(report(base=1.0, sft=math.nan), tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()


def test_importing_the_modules_brings_no_heavy_library() -> None:
    script = (
        "import sys, ivr_dagster.core.evaluation.report, ivr_dagster.core.evaluation.continuations;"
        "print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
