"""Seconds per training step on the CPU: glibc's default allocator settings compared with keeping freed memory.

    python -m benchmarks.allocator

A small GPT-2 with GPT-2's vocabulary, so that logits dominate memory. Each run is a separate process; modes alternate.
"""

import json
import subprocess
import sys
import time
from statistics import median

from benchmarks.record import RESULTS, machine
from ivr_dagster.storage.allocator import keep_freed_memory

MODES = ("default", "kept")
STEPS, ROUNDS = 5, 3


def seconds_per_step(mode: str, dtype: str) -> float:
    """Median seconds per step, after one warm-up step."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    if mode == "kept" and not keep_freed_memory():
        sys.exit("this C library has no mallopt")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=128, n_layer=2, n_head=2, n_positions=256))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, 50_257, (4, 128))
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def main() -> None:
    """Run both modes alternately and write the results."""
    if len(sys.argv) > 1:
        print(seconds_per_step(sys.argv[1], sys.argv[2]))
        return
    result: dict[str, object] = {"machine": machine()}
    for dtype in ("float32", "bfloat16"):
        runs: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(ROUNDS):
            for mode in MODES:
                command = [sys.executable, "-m", "benchmarks.allocator", mode, dtype]
                runs[mode].append(float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
        ratio = median(runs["default"]) / median(runs["kept"])
        print(f"{dtype}: {ratio:.2f} times as fast with freed memory kept ({runs})")
        result[dtype] = {"seconds_per_step": runs, "ratio": ratio}
    (RESULTS / "allocator.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
