"""A cost model for large corpora and models, compared with a measured run.

    python -m benchmarks.cost_model NAME

NAME is a result of `benchmarks.scaling run` on three corpora. For each stage, seconds are a start-up time plus a rate
per byte, fitted to the two smaller runs; the largest run is predicted and compared with its measurement. The tables
of docs/results/scaling.md follow: time, disk and cost of 1 GB, 100 GB and 10 TB. The constants below are assumptions.
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

from benchmarks.record import RESULTS
from benchmarks.scaling import CORPUS_SIDE, STAGES

# prices of rented machines in dollars; utilization of GPT-2 124M on an H100
CORE_HOUR, ACCELERATOR_HOUR, TERABYTE_MONTH = 0.04, 2.50, 25.0
PEAK_FLOPS, UTILIZATION = 989e12, 0.40
LAYERS, WIDTH, PARAMETERS, BLOCK = 12, 768, 124e6, 1_024
EPOCHS = 1
SIZES = {"1 GB": 1e9, "100 GB": 1e11, "10 TB": 1e13}
# cores assumed for each size
CORES = {"1 GB": 8, "100 GB": 64, "10 TB": 1_024}
ACCELERATORS = (1, 8, 64)


@dataclass(frozen=True)
class Line:
    """Seconds of a stage: `start` plus `rate` per byte."""

    start: float
    rate: float

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> "Line":
        """The line through two (bytes, seconds)."""
        rate = (large[1] - small[1]) / (large[0] - small[0])
        return cls(small[1] - rate * small[0], rate)

    def __call__(self, size: float) -> float:
        """Seconds for `size` bytes."""
        return self.start + self.rate * size


def stage_seconds(result: dict[str, Any], stages: tuple[str, ...]) -> float:
    """Total seconds of stages."""
    return sum(result["stages"][stage]["seconds"] for stage in stages)


def prediction(runs: list[dict[str, Any]], stages: tuple[str, ...]) -> tuple[Line, float, float]:
    """The line through the first two runs, and predicted and measured seconds of the third."""
    (small, middle), large = ((run["raw_bytes"], stage_seconds(run, stages)) for run in runs[:2]), runs[2]
    line = Line.through(small, middle)
    return line, line(large["raw_bytes"]), stage_seconds(large, stages)


def training_seconds(size: float, bytes_per_token: float, accelerators: int) -> float:
    """Seconds of one epoch: 6N + 12LCT FLOPs per token (N parameters, L layers of width C, T tokens per block)."""
    flops_per_token = 6 * PARAMETERS + 12 * LAYERS * WIDTH * BLOCK
    return EPOCHS * size / bytes_per_token * flops_per_token / (PEAK_FLOPS * UTILIZATION * accelerators)


def span(seconds: float) -> str:
    """Seconds as text."""
    for name, each in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * each:
            return f"{seconds / each:,.0f} {name}"
    return f"{seconds:,.0f} s"


def tables(runs: list[dict[str, Any]], cores: int, bytes_per_token: float) -> str:
    """The tables in Markdown."""
    large = runs[2]
    lines = ["| stage | start-up, s | MB/s | predicted, s | measured, s | error |", "|---|---:|---:|---:|---:|---:|"]
    for stages in [(stage,) for stage in STAGES] + [CORPUS_SIDE, STAGES]:
        line, predicted, measured = prediction(runs, stages)
        name = " + ".join(stages) if stages != STAGES else "all"
        speed = f"{1e-6 / line.rate:,.0f}" if line.rate > 0 else "–"
        lines.append(
            f"| {name} | {line.start:.1f} | {speed} | {predicted:.0f} | {measured:.0f} "
            f"| {predicted / measured - 1:+.0%} |"
        )
    line, _, _ = prediction(runs, CORPUS_SIDE)
    rest = stage_seconds(large, STAGES) - stage_seconds(large, CORPUS_SIDE)
    lines += [
        "",
        "| corpus | cores | init + analyze | distill … remap | disk besides the corpus | core hours, $ |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    disk = large["disk_bytes"] / large["raw_bytes"]
    for name, size in SIZES.items():
        seconds = line(size) * cores / CORES[name]
        lines.append(
            f"| {name} | {CORES[name]:,} | {span(seconds)} | {span(rest)} | {disk * size / 1e9:,.0f} GB "
            f"| {(seconds * CORES[name] + rest) / 3_600 * CORE_HOUR:,.2f} |"
        )
    lines += ["", f"| corpus | {' | '.join(f'{n} H100' for n in ACCELERATORS)} | $ |", "|---|" + "---:|" * 4]
    for name, size in SIZES.items():
        spans = [span(training_seconds(size, bytes_per_token, n)) for n in ACCELERATORS]
        hours = training_seconds(size, bytes_per_token, 1) / 3_600
        lines.append(f"| {name} | {' | '.join(spans)} | {hours * ACCELERATOR_HOUR:,.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the result")
    parser.add_argument("--bytes-per-token", type=float, default=3.74, help="of the new vocabulary on the corpus")
    arguments = parser.parse_args()
    result = json.loads((RESULTS / f"scaling-{arguments.name}.json").read_text(encoding="utf-8"))
    print(tables(result["runs"], result["machine"]["cores"], arguments.bytes_per_token))


if __name__ == "__main__":
    main()
