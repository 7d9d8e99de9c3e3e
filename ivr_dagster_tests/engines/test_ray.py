"""Cleaning and counting on a Ray cluster of three nodes on this machine."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.tokens.statistics import read_statistics
from ivr_dagster.engines import ray as engine
from ivr_dagster.engines.ray import map_on_ray
from ivr_dagster.errors import InputError, WorkerLostError
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.shard_cache import Map, ShardCache


@pytest.fixture(scope="module")
def cluster(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three single-core nodes; this process is connected but runs no tasks."""
    monkeypatch_module.setenv("RAY_USAGE_STATS_ENABLED", "0")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        started.add_node(num_cpus=1)
    started.wait_for_nodes()
    ray.init(address=started.address, log_to_driver=False, logging_level=logging.ERROR)
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, topics: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for n in range(24):  # each file is a shard; neighbors share a third of their documents
        texts = [f"{n + k // 80} {k % 80} {topics[(7 * n + k) % len(topics)]}" for k in range(120)]
        (folder / f"{n:02d}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


def corpus_hashes(raw: Path, folder: Path, tokenizer: Path, run: Map, **options: Any) -> dict[str, str]:
    """Content hashes of all results of cleaning and counting."""
    write_cleaned_corpus(raw, folder / "cleaned", cache=ShardCache(folder / "shards"), run=run, **options)
    corpus = CleanedCorpus(folder / "cleaned")
    statistics = read_statistics(corpus, tokenizer, ShardCache(folder / "statistics"), run=run)
    (folder / "sequences").mkdir()
    statistics.write_sequences(folder / "sequences")
    counts, _ = statistics.pretoken_counts()
    return {
        "cleaned": content_hash(folder / "cleaned"),
        "counts": content_hash(counts.frame()),
        "frequencies": str(statistics.frequencies(60_000).tolist()),
        "sequences": content_hash(folder / "sequences"),
    }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, gpt2: Any) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    gpt2.save(str(file))
    return file


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, raw: Path, tokenizer: Path) -> dict[str, str]:
    return corpus_hashes(raw, tmp_path_factory.mktemp("local"), tokenizer, map)


def test_cluster_gives_the_same_results_as_one_process(
    cluster: Cluster, raw: Path, tmp_path: Path, tokenizer: Path, local: dict[str, str]
) -> None:
    assert len(cluster.list_all_nodes()) == 3
    assert corpus_hashes(raw, tmp_path, tokenizer, map_on_ray) == local


# workers cannot import functions from test modules, so they evaluate this string
NODE_ID = "__import__('time').sleep(0.5) or __import__('ray').get_runtime_context().get_node_id()"


def test_all_nodes_are_used(cluster: Cluster) -> None:
    assert len(set(map_on_ray(eval, [NODE_ID] * 30))) == 3


def test_killed_node_does_not_change_the_results(
    cluster: Cluster, raw: Path, tmp_path: Path, tokenizer: Path, local: dict[str, str]
) -> None:
    nodes = cluster.list_all_nodes()
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if not killed and 0 < done < total:
            killed.append(done)
            cluster.remove_node(nodes[-1], allow_graceful=False)

    assert corpus_hashes(raw, tmp_path, tokenizer, map_on_ray, progress=kill_one) == local
    assert killed
    assert len(cluster.list_all_nodes()) == 2


def test_cluster_reports_invalid_input_like_one_process(cluster: Cluster, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text('{"body": "x"}')
    with pytest.raises(InputError, match=r"a\.jsonl:1.*--text-key"):
        write_cleaned_corpus(tmp_path / "raw", tmp_path / "cleaned", run=map_on_ray)


def test_item_that_kills_its_workers_is_not_retried_forever(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_RETRIES", 1)
    results = map_on_ray(eval, ["1", "__import__('os')._exit(1)"])
    assert next(results) == 1
    with pytest.raises(WorkerLostError, match="Split the largest files"):
        next(results)


SCRIPT_WITHOUT_CLUSTER = """
from ivr_dagster.engines import ray as engine
from ivr_dagster.engines.ray import map_on_ray
import ray
print(list(map_on_ray(abs, [-1, 2, -3])), ray.is_initialized(), list(map_on_ray(abs, [])))
"""


def test_missing_address_starts_a_temporary_cluster() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT_WITHOUT_CLUSTER], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[1, 2, 3] False []"


def test_unreachable_address_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def no_cluster(**options: Any) -> None:
        raise ConnectionError("nobody there\nat all")

    monkeypatch.setattr(ray, "init", no_cluster)
    with pytest.raises(
        InputError, match=r"ray_address: no Ray cluster answers at 'host:1' \(nobody there\).*ray start"
    ):
        list(partial(map_on_ray, address="host:1")(abs, [1]))
