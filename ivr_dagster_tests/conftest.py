"""Fixtures for all tests: GPT-2's tokenizer, English text, small vocabularies, finished pipelines."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics as pydoc_topics
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer
from xdist.scheduler import LoadScopeScheduling

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.storage.lock import ProcessLock
from ivr_dagster_tests import small_pipeline
from ivr_dagster_tests.small_pipeline import Figures

SLOW_FOLDERS = {Path(__file__).parent / name for name in ("faults", "sample")}
SLOW_FILES = {"test_worker.py", "test_ray.py", "test_tune.py"}

# the same examples in every run, on however busy a machine
REPEATABLE = settings(derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", REPEATABLE, max_examples=30)  # make test
settings.register_profile("thorough", REPEATABLE, max_examples=100)  # make test-all
settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the long tiers as slow; order the tests so that no process waits for another.

    Slow are pipelines of the sample model, the sample corpus and model themselves, launched processes (torchrun, Ray),
    whole searches for training settings, and fault injection.
    """
    for item in items:
        needs_sample = "sample_run" in getattr(item, "fixturenames", ())
        if needs_sample or item.path.name in SLOW_FILES or item.path.parent in SLOW_FOLDERS:
            item.add_marker("slow")
    tests = Path(__file__).parent
    # whole pipelines first, their other readers last
    items.sort(key=lambda item: (item.path.parent != tests, not item.path.is_relative_to(tests / "core")))


class FolderScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Sends the tests of a folder to one process, because they share session fixtures.

    Processes share the fixtures of `faults`, so there it sends the cases of one test to one process.
    """

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.partition("::")[0].rpartition("/")[0]
        return nodeid.partition("[")[0] if folder.endswith("/faults") else folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """pytest-xdist's scheduler by folder."""
    return FolderScheduling(config, log)


@pytest.fixture(scope="session")
def train_bpe() -> Callable[..., Tokenizer]:
    """See :func:`small_pipeline.train_bpe`."""
    return small_pipeline.train_bpe


@pytest.fixture(scope="session")
def tiny_bpe(topics: list[str]) -> Tokenizer:
    """A BPE of 256 bytes, 300 merges and `<|endoftext|>`."""
    return small_pipeline.train_bpe(topics[:20], 300)


@pytest.fixture(scope="session")
def gpt2() -> Tokenizer:
    """GPT-2's tokenizer, as packaged with the sample model."""
    return Tokenizer.from_file(str(SAMPLE_MODEL / "tokenizer.json"))


@pytest.fixture(scope="session")
def gpt2_bpe(gpt2: Tokenizer) -> ByteLevelBPE:
    """GPT-2's vocabulary and merges."""
    return read_bpe(gpt2)


@pytest.fixture(scope="session")
def gpt2_distilled(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE) -> Tokenizer:
    """GPT-2's tokenizer distilled, without exceptions."""
    return distill(gpt2, gpt2_bpe).tokenizer


@pytest.fixture(scope="session")
def topics() -> list[str]:
    """Python's help topics: 79 texts, half a megabyte of English, code and tables."""
    return [text for _, text in sorted(pydoc_topics.topics.items())]


@pytest.fixture(scope="session")
def topics_counts(topics: list[str], gpt2: Tokenizer) -> PretokenCounts:
    """Pre-token counts of `topics`."""
    return count_pretokens(topics, gpt2)


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Figures]:
    """The folder and figures of a finished pipeline with the sample model. Copy it, never change it. Slow."""
    return _build_once(tmp_path_factory, "sample", small_pipeline.build_sample)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Figures]:
    """The folder and figures of a finished pipeline with a tiny model. Copy it, never change it."""
    return _build_once(tmp_path_factory, "tiny", small_pipeline.build_tiny)


@pytest.fixture(scope="session")
def tiny(tiny_run: tuple[Path, Figures]) -> Path:
    """The folder of `tiny_run`."""
    return tiny_run[0]


def _build_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], Figures]
) -> tuple[Path, Figures]:
    """A folder filled by `build`, and the figures it returned; xdist's processes share one folder."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    root, figures = place / name / "root", place / name / "figures.json"
    with ProcessLock(place / f"{name}.lock").hold("fixture", 600), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", "")
        if not figures.exists():
            shutil.rmtree(root.parent, ignore_errors=True)  # left by a process that failed
            root.mkdir(parents=True)
            figures.write_text(json.dumps(build(root)))
    return root, json.loads(figures.read_text())
