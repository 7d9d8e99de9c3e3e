"""Speed of fine-tuning in bytes of text per second, compared with a plain Trainer that truncates and pads documents.

    ivr --artifacts-dir my_domain run --until align && ivr --artifacts-dir my_domain train --no-vanilla
    python -m benchmarks.training --artifacts my_domain

Both variants train on the train split with the settings of `sft_config.yaml`, the same block size and batch size:
`ours` trains the adapted model on packed blocks, `padding` the base model with its own tokenizer. Runs alternate, each
in a new process. Only text that was trained on counts; padding and truncated text do not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.record import RESULTS, machine
from ivr_dagster.cli.project import Project
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.training.folders import TrainingBlocks
from ivr_dagster.core.training.sft import Training, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config
from ivr_dagster.resources.accelerator import Accelerator
from ivr_dagster.settings import load_settings

VARIANTS = ("ours", "padding")


def ours(artifacts: Path, steps: int, dtype: str) -> dict[str, Any]:
    """The adapted model on packed blocks, as `ivr train` trains it."""
    project = Project(load_settings(artifacts, environ={}), artifacts)
    accelerator = Accelerator(project.settings.compute.device, dtype)
    device, dtype = accelerator.resolved_device(), accelerator.resolved_dtype()
    config = read_sft_config(project.settings.sft_config_file(), max_steps=steps)
    blocks = TrainingBlocks(project.paths["training_blocks"])
    with tempfile.TemporaryDirectory() as scratch:
        cpu = time.process_time()
        training = Training(
            project.paths["initialized_model"],
            blocks.path / "remapped",
            Path(scratch),
            config,
            project.paths["remapped_tokenizer"],
            fingerprint="benchmark",
            device=device,
            dtype=dtype,
            new_tokens=project.load("remap_rules").new_tokens(),
        )
        result = fine_tune(training, keep_model=False)
        cpu = time.process_time() - cpu
    seconds = result.tokens / result.tokens_per_second
    size = result.tokens * (blocks.bytes_per_token("remapped") or 0.0)
    return {"bytes": round(size), "tokens": result.tokens, "seconds": seconds, "cpu_seconds": cpu, "dtype": dtype}


def padding(artifacts: Path, steps: int) -> dict[str, Any]:
    """The base model with a plain Trainer: one document per row, truncated to the block size, padded to the batch."""
    import datasets
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
    )

    from ivr_dagster.core.training.sft_arguments import SftArguments

    project = Project(load_settings(artifacts, environ={}), artifacts)
    folder = project.base.model().path
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    length = project.settings.training.block_size or project.base.model().sequence_tokens()
    texts = list(CleanedCorpus(project.paths["cleaned_corpus"]).texts("train"))
    encoded = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
    sizes = [len(tokenizer.decode(ids).encode()) for ids in encoded]
    config = read_sft_config(project.settings.sft_config_file(), vanilla=True, max_steps=steps)
    device = Accelerator(project.settings.compute.device).find_device()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SftArguments(
            **{**config.arguments, "output_dir": scratch, "report_to": [], "disable_tqdm": True, "eval_strategy": "no"},
            use_cpu=device == "cpu",
        )
        seen: list[int] = []
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)

        def record_and_collate(rows: list[dict[str, Any]]) -> Any:
            seen.extend(int(row.pop("number")) for row in rows)
            return collate(rows)

        arguments.remove_unused_columns = False
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="float32"),
            args=arguments,
            train_dataset=datasets.Dataset.from_dict({"input_ids": encoded, "number": list(range(len(encoded)))}),
            data_collator=record_and_collate,
        )
        cpu, started = time.process_time(), time.perf_counter()
        trainer.train()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    seen = seen[: steps * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps]
    return {
        "bytes": sum(sizes[number] for number in seen),
        "tokens": sum(len(encoded[number]) for number in seen),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "dtype": "float32",
    }


def main() -> None:
    """Run both variants alternately and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, required=True, help="artifacts folder with training_blocks")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps per run")
    parser.add_argument("--turns", type=int, default=3, help="runs per variant; the result is their median")
    parser.add_argument("--dtype", default="auto", help="dtype of `ours`; `padding` always uses float32")
    parser.add_argument("--name", default="", help="suffix of the result file in benchmarks/results")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    artifacts = options.artifacts.resolve()
    if options.only:
        result = (
            ours(artifacts, options.steps, options.dtype)
            if options.only == "ours"
            else padding(artifacts, options.steps)
        )
        print("RESULT " + json.dumps(result))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for turn in range(options.turns):
        for name in VARIANTS:
            command = [sys.executable, "-m", "benchmarks.training", "--artifacts", str(artifacts), "--only", name]
            command += ["--steps", str(options.steps), "--dtype", options.dtype]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            line = next(line for line in output.splitlines() if line.startswith("RESULT "))
            runs[name].append(json.loads(line.removeprefix("RESULT ")))
            last = runs[name][-1]
            print(f"turn {turn + 1}, {name}: {last['bytes'] / last['seconds']:,.0f} bytes of text/s", flush=True)
    speeds = {name: median(each["bytes"] / each["seconds"] for each in results) for name, results in runs.items()}
    ratio = speeds["ours"] / speeds["padding"]
    print(f"ours {speeds['ours']:,.0f}, padding {speeds['padding']:,.0f} bytes of text/s: {ratio:.2f} times")
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    result = {"machine": machine(), "versions": versions, "steps": options.steps, "ratio": ratio, "runs": runs}
    (RESULTS / f"training{'-' + options.name if options.name else ''}.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
