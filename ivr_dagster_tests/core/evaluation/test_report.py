import json
import math
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from ivr_dagster.core.errors import InputError
from ivr_dagster.core.evaluation.bits_per_byte import BitsPerByte
from ivr_dagster.core.evaluation.figures import EvaluationReport, LossCurve, Variant, as_json, loss_curve
from ivr_dagster.core.evaluation.plots import plots
from ivr_dagster.core.evaluation.report import as_markdown, summary, write_report


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
