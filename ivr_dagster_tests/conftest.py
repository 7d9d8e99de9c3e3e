"""What several stems are tested with: GPT-2's tokenizer, text that every Python carries, small vocabularies."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pydoc_data import topics as pydoc_topics
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.storage.atomic import remove
from ivr_dagster.storage.lock import ProcessLock

# the same examples in every run, on however busy a machine
settings.register_profile(
    "ivr",
    derandomize=True,
    deadline=None,
    max_examples=100,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ivr")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole pipelines first, so that no process is left with minutes of them when the others have ended."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def _train_bpe(
    texts: Iterable[str],
    merges: int,
    *,
    alphabet: Sequence[str] | None = None,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet is None else alphabet
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges,
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def train_bpe() -> Callable[..., Tokenizer]:
    """`train_bpe(texts, merges, alphabet=all bytes, pre_tokenizer=GPT-2's)`: a small BPE, `<|endoftext|>` last."""
    return _train_bpe


@pytest.fixture(scope="session")
def tiny_bpe(topics: list[str]) -> Tokenizer:
    """A BPE of 256 bytes, 300 merges and `<|endoftext|>`."""
    return _train_bpe(topics[:20], 300)


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
    """Half a megabyte of English, code and tables in some eighty texts: the help topics of Python."""
    return [text for _, text in sorted(pydoc_topics.topics.items())]


@pytest.fixture(scope="session")
def topics_counts(topics: list[str], gpt2: Tokenizer) -> PretokenCounts:
    """Pre-token counts of `topics`."""
    return count_pretokens(topics, gpt2)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A small corpus taken through every stage, and figures by asset. It is copied, never changed."""
    from ivr_dagster_tests.small_pipeline import build, prepare

    def make(root: Path) -> dict[str, dict[str, Any]]:
        prepare(root)
        return build(root)

    return _made_once(tmp_path_factory, "built", make)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer documents and a tiny model taken through every stage. It is copied, never changed."""
    from ivr_dagster_tests.small_pipeline import build_tiny

    return _made_once(tmp_path_factory, "tiny", build_tiny)[0]


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """A folder filled by `make`, and what that returned: once for all processes that tests run in side by side."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    root, returned = place / name / "root", place / name / "returned.json"
    with ProcessLock(place / f"{name}.lock").hold("fixture", 600), _without_dagster_home():
        if not returned.exists():
            remove(root.parent)  # of a worker that did not come to its end
            root.mkdir(parents=True)
            returned.write_text(json.dumps(make(root)))
    return root, json.loads(returned.read_text())


@contextmanager
def _without_dagster_home() -> Iterator[None]:
    home = os.environ.pop("DAGSTER_HOME", None)
    try:
        yield
    finally:
        os.environ.pop("DAGSTER_HOME", None)
        if home is not None:
            os.environ["DAGSTER_HOME"] = home
