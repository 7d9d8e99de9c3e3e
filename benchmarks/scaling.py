"""The tokenizer side as a corpus grows: wall-clock and memory of whole commands, and what a change costs.

    python -m benchmarks.scaling make --source DIR --copies 10 --files 100 --target DIR
    python -m benchmarks.scaling run --raw DIR DIR DIR --artifacts DIR --name NAME
    python -m benchmarks.scaling change --raw DIR --artifacts DIR --name NAME
    python -m benchmarks.scaling engines --raw DIR --artifacts DIR --name NAME

`make` writes distinct text, so many times a corpus. `run` executes each stage's command as people do, and then all as
one, and watches the memory of all processes; init and analyze several times, corpora taking turns. `change` has init
and analyze made at first, after a change of one file, with nothing changed and of a few words, and changes the file
back. `engines` works on the corpus by the cores of this machine and on a Ray cluster of three nodes, here too, and
holds what they write against each other. Results go to benchmarks/results/scaling-NAME.json.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from benchmarks.__main__ import RESULTS, machine
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
# of the words that are not among the commonest, the share that is another one in each copy: types grow with the text
# as they do in real ones
COMMON_WORDS, CHANGED_SHARE = 2_000, 0.3
_WORD = re.compile(r"[A-Za-z]{4,}")
_SECONDS_BETWEEN_LOOKS = 0.2


def changed_words(text: str, copy: int, common: frozenset[str]) -> str:
    """The text with a part of its rarer words changed, in the same way wherever they stand in this copy."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    by = copy % 25 + 1
    turned = str.maketrans(letters + letters.upper(), (letters[by:] + letters[:by]) * 2)
    changed: dict[str, str] = {}

    def change(match: re.Match[str]) -> str:
        word = match[0]
        if word not in changed:
            point = sum((n + 1) * ord(character) for n, character in enumerate(word)) * 2_654_435_761 * (copy + 1)
            other = word.translate(turned) + letters[copy // 25 % 26]
            changed[word] = other if word not in common and point % 1_000 < 1_000 * CHANGED_SHARE else word
        return changed[word]

    return _WORD.sub(change, text)


def _write_copy(texts: list[str], common: frozenset[str], target: Path, files: int, copy: int) -> None:
    each = -(-len(texts) // files)
    for n in range(files):
        text = "\n\n\n".join(texts[n * each : (n + 1) * each])
        file = target / f"{copy:04d}-{n:04d}.txt"
        file.write_text(changed_words(text, copy, common) if copy else text, encoding="utf-8")


def make(source: Path, target: Path, copies: int, files: int) -> None:
    """Write `files` files that hold `copies` times the text of `source`, no copy like another."""
    text = "\n\n\n".join(file.read_text(encoding="utf-8") for file in corpus_files(source))
    common = frozenset(word for word, _ in Counter(_WORD.findall(text)).most_common(COMMON_WORDS))
    target.mkdir(parents=True)
    write = partial(_write_copy, text.split("\n\n\n"), common, target, max(1, files // copies))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(copies)))


class MemoryWatch(Thread):
    """The most memory, in bytes, that a process and all its descendants took together, what they share counted once."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(process)
        self.peak = 0

    def run(self) -> None:
        """Look until the process is gone."""
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
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def command(artifacts: Path, *arguments: str) -> dict[str, Any]:
    """One `ivr` command: its seconds, peak of memory and figures."""
    started = time.perf_counter()
    ivr = [sys.executable, "-m", "ivr_dagster.cli.app", "--artifacts-dir", str(artifacts), "--json", *arguments]
    process = subprocess.Popen(ivr, stdout=subprocess.PIPE, text=True)
    watch = MemoryWatch(process.pid)
    watch.start()
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(ivr)} ended with {process.returncode}")
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
    """Every stage's command on an empty artifacts folder, then all of them as one.

    Init and analyze, which grow with the text, so many times, corpora taking turns: how fast a machine is may differ
    from one minute to the next. Of their seconds medians, of memory the most.
    """
    runs: dict[Path, dict[str, Any]] = {raw: {**size_of(raw), "stages": {}} for raw in arguments.raw}
    for turn in range(arguments.turns):
        for raw, told in runs.items():
            options = options_of(arguments, raw)
            shutil.rmtree(arguments.artifacts, ignore_errors=True)
            for stage in CORPUS_SIDE if turn else STAGES:
                found = command(arguments.artifacts, stage, *options.get(stage, []))
                known = told["stages"].setdefault(stage, {"turns": [], "peak_memory_bytes": 0})
                known["turns"].append(found["seconds"])
                known["seconds"] = statistics.median(known["turns"])
                known["peak_memory_bytes"] = max(known["peak_memory_bytes"], found["peak_memory_bytes"])
                print(f"{raw.name} {stage}: {_told(found)}", flush=True)
            if not turn:
                told["disk_bytes"] = sum(file.stat().st_blocks * 512 for file in _different(arguments.artifacts))
                shutil.rmtree(arguments.artifacts)
                every = command(arguments.artifacts, "run", "--until", "remap", *options["init"], *options["select"])
                told["run"] = {key: every[key] for key in ("seconds", "peak_memory_bytes")}
                print(f"{raw.name} init … remap: {_told(every)}", flush=True)
    return {"runs": sorted(runs.values(), key=lambda told: told["raw_bytes"])}


def size_of(raw: Path) -> dict[str, int]:
    """Bytes and files of a corpus."""
    files = corpus_files(raw)
    return {"raw_bytes": sum(file.stat().st_size for file in files), "files": len(files)}


def _told(found: dict[str, Any]) -> str:
    return f"{found['seconds']:.1f} s, {found['peak_memory_bytes'] / 1e6:,.0f} MB"


def _different(folder: Path) -> Iterator[Path]:
    """The files of a folder, each once whatever names it has."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return iter({file.stat().st_ino: file for file in files}.values())


def change(arguments: argparse.Namespace) -> dict[str, Any]:
    """Init and analyze at first, after one file of the corpus gained a line, with nothing changed, and of a few words.

    The last is their start-up: what they take whatever the corpus. Medians of so many turns as are asked for.
    """
    (raw,) = arguments.raw
    files = corpus_files(raw)
    file = files[len(files) // 2]
    before = file.read_bytes()
    init = options_of(arguments, raw)["init"]
    shutil.rmtree(arguments.artifacts, ignore_errors=True)
    first = [command(arguments.artifacts, "init", *init), command(arguments.artifacts, "analyze")]
    found: dict[str, Any] = {**size_of(raw), "first": sum(told["seconds"] for told in first)}
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
                    turns[name].append(sum(told["seconds"] for told in made))
                    print(name, round(turns[name][-1], 1), flush=True)
        finally:
            file.write_bytes(before)
    found |= {name: statistics.median(seconds) for name, seconds in turns.items()} | {"turns": turns}
    beyond = found["one file changed"] - found["start-up"]
    found["beyond start-up, of the first time"] = beyond / found["first"]
    return found


def engines(arguments: argparse.Namespace) -> dict[str, Any]:
    """The corpus side without Dagster, by both engines: seconds, and whether all they write is the same."""
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
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "change", "engines"], help="see above")
    parser.add_argument("--source", type=Path, help="corpus to copy")
    parser.add_argument("--target", type=Path, help="folder to make")
    parser.add_argument("--copies", type=int, default=10, help="how often, each time with other words")
    parser.add_argument("--files", type=int, default=100, help="files in all")
    parser.add_argument("--raw", type=Path, nargs="+", help="corpus to work on, of `run` any number")
    parser.add_argument("--artifacts", type=Path, help="artifacts folder; `run` empties it")
    parser.add_argument("--model", default=str(SAMPLE_MODEL), help="base model or tokenizer")
    parser.add_argument("--new-tokens", type=int, default=4_000, help="how many ids to give away")
    parser.add_argument("--turns", type=int, default=3, help="of `run` and `change`")
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--ray-address", default="")
    parser.add_argument("--name", help="of the file in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.source, arguments.target, arguments.copies, arguments.files)
        return
    result = {
        **{"run": run, "change": change, "engines": engines}[arguments.what](arguments),
        "machine": machine(),
        "versions": {name: version(name) for name in ("dagster", "gigatoken", "polars", "pyarrow", "tokenizers")}
        | {"python": platform.python_version()},
    }
    target = RESULTS / f"scaling-{arguments.name}.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
