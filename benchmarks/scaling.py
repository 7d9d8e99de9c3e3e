"""Time and memory of the tokenizer side as the corpus grows, and after a change of the corpus.

    python -m benchmarks.scaling make --source DIR --copies 10 --files 100 --target DIR
    python -m benchmarks.scaling run --raw DIR DIR DIR --artifacts DIR --name NAME
    python -m benchmarks.scaling change --raw DIR --artifacts DIR --name NAME
    python -m benchmarks.scaling engines --raw DIR --artifacts DIR --name NAME

`make` writes a corpus many times, each copy with different words. `run` runs every stage as a command, then all stages
in one command, and measures the memory of all processes; init and analyze are repeated with the corpora in turns.
`change` compares init and analyze of a new corpus, of a corpus with one changed file, of an unchanged corpus and of a
corpus of a few words. `engines` compares local processes with a Ray cluster of three nodes on this machine and checks
that their outputs are equal. Results go to benchmarks/results/scaling-NAME.json.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from benchmarks.record import save
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.corpus.files import corpus_files
from ivr_dagster.core.tokens.statistics import read_statistics
from ivr_dagster.engines.local import map_local
from ivr_dagster.engines.ray import map_on_ray
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.shard_cache import ShardCache

STAGES = ("init", "analyze", "distill-tokenizer", "select", "remap")
CORPUS_SIDE = ("init", "analyze")
# each copy changes this share of its less common words, so that the number of types grows with the text
COMMON_WORDS, CHANGED_SHARE = 2_000, 0.3
_WORD = re.compile(r"[A-Za-z]{4,}")
_POLLING_SECONDS = 0.2


def changed_words(text: str, copy: int, common: frozenset[str]) -> str:
    """The text with some of its less common words replaced, consistently within a copy."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    shift = copy % 25 + 1
    rotated = str.maketrans(letters + letters.upper(), (letters[shift:] + letters[:shift]) * 2)
    changed: dict[str, str] = {}

    def change(match: re.Match[str]) -> str:
        word = match[0]
        if word not in changed:
            number = sum((n + 1) * ord(character) for n, character in enumerate(word)) * 2_654_435_761 * (copy + 1)
            other = word.translate(rotated) + letters[copy // 25 % 26]
            changed[word] = other if word not in common and number % 1_000 < 1_000 * CHANGED_SHARE else word
        return changed[word]

    return _WORD.sub(change, text)


def _write_copy(texts: list[str], common: frozenset[str], target: Path, files: int, copy: int) -> None:
    per_file = -(-len(texts) // files)
    for n in range(files):
        text = "\n\n\n".join(texts[n * per_file : (n + 1) * per_file])
        file = target / f"{copy:04d}-{n:04d}.txt"
        file.write_text(changed_words(text, copy, common) if copy else text, encoding="utf-8")


def make(source: Path, target: Path, copies: int, files: int) -> None:
    """Write `files` files with `copies` different copies of the text of `source`."""
    text = "\n\n\n".join(file.read_text(encoding="utf-8") for file in corpus_files(source))
    common = frozenset(word for word, _ in Counter(_WORD.findall(text)).most_common(COMMON_WORDS))
    target.mkdir(parents=True)
    write = partial(_write_copy, text.split("\n\n\n"), common, target, max(1, files // copies))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(copies)))


class MemoryWatch(Thread):
    """Peak memory, in bytes, of a process and its descendants together; shared pages count once."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(process)
        self.peak = 0

    def run(self) -> None:
        """Poll until the process has ended."""
        while True:
            total = 0
            try:
                for each in [self._root, *self._root.children(recursive=True)]:
                    try:
                        total += each.memory_full_info().pss
                    except (psutil.NoSuchProcess, psutil.AccessDenied):
                        continue
                if self._root.status() == psutil.STATUS_ZOMBIE:
                    return
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, total)
            time.sleep(_POLLING_SECONDS)


def command(artifacts: Path, *arguments: str) -> dict[str, Any]:
    """Run an `ivr` command: its seconds, peak memory and figures."""
    started = time.perf_counter()
    ivr = [sys.executable, "-m", "ivr_dagster.cli.app", "--artifacts-dir", str(artifacts), "--json", *arguments]
    process = subprocess.Popen(ivr, stdout=subprocess.PIPE, text=True)
    watch = MemoryWatch(process.pid)
    watch.start()
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(ivr)} exited with {process.returncode}")
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory_bytes": watch.peak,
        "figures": json.loads(output) if output.strip() else {},
    }


def options_of(arguments: argparse.Namespace, raw: Path) -> dict[str, list[str]]:
    """Options of each stage's command."""
    engine = ["--engine", arguments.engine, "--ray-address", arguments.ray_address]
    return {
        "init": ["--model-name", arguments.model, "--raw-corpora-dir", str(raw), *engine],
        "analyze": engine,
        "select": ["--max-candidates", str(arguments.new_tokens)],
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every stage on an empty artifacts folder, then all stages as one command.

    Init and analyze, whose time grows with the text, are repeated with the corpora in turns, because the speed of a
    machine varies over minutes. The result has median seconds and maximum memory.
    """
    runs: dict[Path, dict[str, Any]] = {raw: {**size_of(raw), "stages": {}} for raw in arguments.raw}
    for turn in range(arguments.turns):
        for raw, figures in runs.items():
            options = options_of(arguments, raw)
            shutil.rmtree(arguments.artifacts, ignore_errors=True)
            for stage in CORPUS_SIDE if turn else STAGES:
                found = command(arguments.artifacts, stage, *options.get(stage, []))
                known = figures["stages"].setdefault(stage, {"turns": [], "peak_memory_bytes": 0})
                known["turns"].append(found["seconds"])
                known["seconds"] = statistics.median(known["turns"])
                known["peak_memory_bytes"] = max(known["peak_memory_bytes"], found["peak_memory_bytes"])
                print(f"{raw.name} {stage}: {_summary(found)}", flush=True)
            if not turn:
                figures["disk_bytes"] = _disk_bytes(arguments.artifacts)
                shutil.rmtree(arguments.artifacts)
                every = command(arguments.artifacts, "run", "--until", "remap", *options["init"], *options["select"])
                figures["run"] = {key: every[key] for key in ("seconds", "peak_memory_bytes")}
                print(f"{raw.name} init … remap: {_summary(every)}", flush=True)
    return {"runs": sorted(runs.values(), key=lambda figures: figures["raw_bytes"])}


def size_of(raw: Path) -> dict[str, int]:
    """Bytes and files of a corpus."""
    files = corpus_files(raw)
    return {"raw_bytes": sum(file.stat().st_size for file in files), "files": len(files)}


def _summary(found: dict[str, Any]) -> str:
    return f"{found['seconds']:.1f} s, {found['peak_memory_bytes'] / 1e6:,.0f} MB"


def _disk_bytes(folder: Path) -> int:
    """Disk usage of a folder, hard links once."""
    found = (file.stat() for file in folder.rglob("*") if file.is_file())
    return sum({status.st_ino: status.st_blocks * 512 for status in found}.values())


def change(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time init and analyze: first run, one file with a new line, nothing changed, and a corpus of a few words.

    The last is the start-up time, which does not depend on the corpus. Medians over `--turns`.
    """
    (raw,) = arguments.raw
    files = corpus_files(raw)
    file = files[len(files) // 2]
    before = file.read_bytes()
    init = options_of(arguments, raw)["init"]
    shutil.rmtree(arguments.artifacts, ignore_errors=True)
    first = [command(arguments.artifacts, "init", *init), command(arguments.artifacts, "analyze")]
    found: dict[str, Any] = {**size_of(raw), "first": sum(figures["seconds"] for figures in first)}
    with tempfile.TemporaryDirectory() as folder:
        few, few_artifacts = Path(folder) / "raw", Path(folder) / "artifacts"
        few.mkdir()
        for n in range(400):
            (few / f"{n}.txt").write_text(f"A document of a few words, the {n}th.", encoding="utf-8")
        command(few_artifacts, "init", "--model-name", arguments.model, "--raw-corpora-dir", str(few))
        turns: dict[str, list[float]] = {"start-up": [], "nothing changed": [], "one file changed": []}
        try:
            for turn in range(arguments.turns):
                for name, place in (("start-up", few_artifacts), *((key, arguments.artifacts) for key in [*turns][1:])):
                    if name == "one file changed":
                        file.write_bytes(before + f"\n\nOne more line, the {turn}th.\n".encode())
                    made = [command(place, stage) for stage in CORPUS_SIDE]
                    turns[name].append(sum(figures["seconds"] for figures in made))
                    print(name, round(turns[name][-1], 1), flush=True)
        finally:
            file.write_bytes(before)
    found |= {name: statistics.median(seconds) for name, seconds in turns.items()} | {"turns": turns}
    beyond = found["one file changed"] - found["start-up"]
    found["beyond start-up, of the first time"] = beyond / found["first"]
    return found


def engines(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time init and analyze with both engines, without Dagster, and compare what they write."""
    import ray
    from ray.cluster_utils import Cluster

    (raw,) = arguments.raw
    shutil.rmtree(arguments.artifacts, ignore_errors=True)
    started = time.perf_counter()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    seconds = {"start of the cluster": time.perf_counter() - started}
    hashes = {}
    for name, engine in (("local", map_local), ("ray", map_on_ray), ("ray, workers started", map_on_ray)):
        folder = arguments.artifacts / name
        started = time.perf_counter()
        write_cleaned_corpus(raw, folder / "cleaned", cache=ShardCache(folder / "shards"), run=engine)
        corpus, results = CleanedCorpus(folder / "cleaned"), ShardCache(folder / "statistics")
        counted = read_statistics(corpus, Path(arguments.model) / "tokenizer.json", results, run=engine)
        counts, _ = counted.pretoken_counts()
        seconds[name] = time.perf_counter() - started
        (folder / "sequences").mkdir()
        counted.write_sequences(folder / "sequences")
        hashes[name] = [*map(content_hash, (folder / "cleaned", folder / "sequences", counts.frame()))]
        print(name, round(seconds[name], 1), flush=True)
    ray.shutdown()
    cluster.shutdown()
    return {**size_of(raw), "seconds": seconds, "alike": len(set(map(tuple, hashes.values()))) == 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "change", "engines"], help="see above")
    parser.add_argument("--source", type=Path, help="corpus to copy")
    parser.add_argument("--target", type=Path, help="folder to write")
    parser.add_argument("--copies", type=int, default=10, help="number of copies")
    parser.add_argument("--files", type=int, default=100, help="number of files")
    parser.add_argument("--raw", type=Path, nargs="+", help="corpora; one unless `run`")
    parser.add_argument("--artifacts", type=Path, help="artifacts folder, deleted first")
    parser.add_argument("--model", default=str(SAMPLE_MODEL), help="base model or tokenizer")
    parser.add_argument("--new-tokens", type=int, default=4_000, help="number of new tokens")
    parser.add_argument("--turns", type=int, default=3, help="repetitions of `run` and `change`")
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--ray-address", default="")
    parser.add_argument("--name", help="name of the result")
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.source, arguments.target, arguments.copies, arguments.files)
        return
    measure = {"run": run, "change": change, "engines": engines}[arguments.what]
    save(f"scaling-{arguments.name}", measure(arguments), "dagster gigatoken polars pyarrow tokenizers")


if __name__ == "__main__":
    main()
