"""Tables and plots of `benchmarks.quality`: runs, means over seeds with confidence intervals, learning curves."""

import json
from pathlib import Path
from typing import Any

import numpy as np

# Student's t for two-sided 95 %, by degrees of freedom; 2 for more
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def as_markdown(part: str, result: dict[str, Any]) -> str:
    """The table of docs/results/models.md."""
    if part == "start":
        lines = ["| before any training | BPB |", "|---|---:|"]
        lines += [f"| {name} | {row['bpb']:.3f} |" for name, row in result["rows"].items()]
        return "\n".join(lines)
    lines = ["| variant | seed | tokens | bytes of text | CPU seconds | BPB | out-of-domain BPB |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {run['variant']} | {run['seed']} | {run['tokens']:,} | {run['bytes']:,.0f} | {run['cpu_seconds']:,.0f} "
        f"| {run['bpb']:.4f} | {run['retention_bpb'] or 0:.4f} |"
        for run in result["runs"]
    ]
    return "\n".join([*lines, "", *_over_seeds(result)])


def _over_seeds(result: dict[str, Any]) -> list[str]:
    """Means over seeds, and the difference of adapted and vanilla, with 95 % confidence intervals (Student, Welch)."""

    def with_interval(value: str, error: float, freedom: float) -> str:
        return f"{value} ± {T_95.get(int(freedom), 2.0) * error:.4f}" if freedom >= 1 else f"{value} (one seed)"

    lines, found = [], {}
    for name in dict.fromkeys(run["variant"] for run in result["runs"]):
        for key, text in (("bpb", "held-out"), ("retention_bpb", "out-of-domain")):
            values = np.array([run[key] for run in result["runs"] if run["variant"] == name and run[key]])
            if not len(values):
                continue
            freedom = len(values) - 1
            error = float(values.std(ddof=1)) / len(values) ** 0.5 if freedom else 0.0
            found[name, key] = float(values.mean()), error, freedom
            rise = f"{values.mean() / result['base'][key] - 1:+.1%} relative to the base model"
            lines.append(f"{name}, {text}: {with_interval(f'{values.mean():.4f}', error, freedom)}, {rise}")
    for key in ("bpb", "retention_bpb"):
        if {("adapted", key), ("vanilla", key)} <= found.keys():
            (one, a, n), (two, b, m) = found["adapted", key], found["vanilla", key]
            freedom = (a**2 + b**2) ** 2 / (a**4 / n + b**4 / m) if n and m else 0.0
            difference = with_interval(f"{one - two:+.4f}", (a**2 + b**2) ** 0.5, freedom)
            lines.append(f"adapted − vanilla, {key}: {difference}, ratio {one / two:.3f}")
    return lines


def compare(files: list[Path], plot: Path | None) -> dict[str, Any]:
    """The runs of several files as one result; optionally plot their learning curves over compute and over text."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    combined: dict[str, Any] = results[0] | {"runs": [run for result in results for run in result["runs"]]}
    if plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        left.set_ylabel("bits per byte, validation")
        colors = {"adapted": "tab:blue", "vanilla": "tab:orange"}
        for axes, key, scale, label in (
            (left, "cpu_seconds", 1, "CPU seconds"),
            (right, "bytes", 1e3, "training text, KB"),
        ):
            axes.set_xlabel(label)
            named = set()
            for run in combined["runs"]:
                name = run["variant"]
                axes.plot(
                    [point[key] / scale for point in run["curve"]],
                    [point["bpb"] for point in run["curve"]],
                    "o-",
                    color=colors[name],
                    label=None if name in named else name,
                )
                named.add(name)
            axes.legend()
        figure.savefig(plot, dpi=110)
    return combined
