"""Which text is trained on, which is validated on, and what is mixed in."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from ivr_dagster.assets.training import COLD, WARM, _as_text, _divided, _general_texts, _speed, _start
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster_tests.core.training.test_warm_start import written
from ivr_dagster_tests.small_pipeline import project_settings

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CleanedCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "raw").mkdir()
    texts = [f"{one}{two} " * 30 for one in LETTERS for two in LETTERS[:10]]
    (folder / "raw" / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_cleaned_corpus(folder / "raw", folder / "cleaned")
    return CleanedCorpus(folder / "cleaned")


def settings(folder: Path, **given: Any) -> ProjectSettings:
    return project_settings(folder, **given)


def always(_: list[str]) -> bool:
    return True


def test_validation_takes_a_twentieth_at_most_and_shares_no_document_with_training(
    corpus: CleanedCorpus, tmp_path: Path
) -> None:
    everything = {i for i, _ in corpus.documents("train")}
    train, validation, size, kept = _divided(settings(tmp_path), corpus, everything, always)
    assert train | validation == everything and not train & validation
    assert 0 < kept <= 0.05 * (size + kept)


def test_validation_stays_the_same_whatever_part_is_trained_on(corpus: CleanedCorpus, tmp_path: Path) -> None:
    everything = {i for i, _ in corpus.documents("train")}
    asked = {"validation_bytes": 200}
    _, all_of_it, _, _ = _divided(settings(tmp_path, **asked), corpus, everything, always)
    train, part, size, _ = _divided(settings(tmp_path, train_bytes=5_000, **asked), corpus, everything, always)
    assert part == all_of_it and not train & part
    assert size <= 5_000


@pytest.mark.parametrize(
    ("given", "enough"), [({"validation_bytes": 0}, True), ({}, False), ({"train_bytes": 300}, True)]
)
def test_too_little_text_is_all_trained_on(
    given: dict[str, int], enough: bool, corpus: CleanedCorpus, tmp_path: Path
) -> None:
    everything = {i for i, _ in corpus.documents("train")}
    _, validation, _, kept = _divided(settings(tmp_path, **given), corpus, everything, lambda _: enough)
    assert (validation, kept) == (set(), 0)


def test_general_text_has_its_share_and_holds_no_document_of_the_corpus(corpus: CleanedCorpus, tmp_path: Path) -> None:
    ours = [text for split in ("train", "heldout") for _, text in corpus.documents(split)]
    others = [f"general {number} " * 20 for number in range(50)]
    (tmp_path / "general").mkdir()
    lines = (json.dumps({"text": text}) + "\n" for text in ours + others)
    (tmp_path / "general" / "all.jsonl").write_text("".join(lines))
    asked = settings(tmp_path, general_corpora_dir=str(tmp_path / "general"), general_share=0.2)
    texts = _general_texts(asked, corpus, 8_000)
    assert texts and all(text.startswith("general") for text in texts)
    assert 1_500 < sum(len(text.encode()) for text in texts) <= 2_000
    assert _general_texts(settings(tmp_path), corpus, 8_000) == []


def test_one_folder_for_both_gives_no_text_twice(corpus: CleanedCorpus, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    lines = (json.dumps({"text": f"general {number} " * 20}) + "\n" for number in range(30))
    (tmp_path / "other" / "all.jsonl").write_text("".join(lines))
    folder = {"general_corpora_dir": str(tmp_path / "other"), "retention_corpora_dir": str(tmp_path / "other")}
    alone = _general_texts(settings(tmp_path, **folder, retention_bytes=0), corpus, 10**6)
    beside = _general_texts(settings(tmp_path, **folder, retention_bytes=1_000), corpus, 10**6)
    assert set(beside) < set(alone) and len(alone) == 30


def test_how_fast_a_training_is_stands_in_log_and_metadata_and_mfu_where_it_is_known() -> None:
    result: Any = SimpleNamespace(tokens_per_second=1_234.56, flops_per_second=3.7e13, mfu=None)
    entry = {"tokens_per_second": 1_234.56, "flops_per_second": 3.7e13}
    figures = {"tokens_per_second": 1_234.6, "flops_per_second": 37_000_000_000_000}
    assert _speed(result, None) == figures
    assert _as_text(entry, None) == "1,235 tokens/s, 37,000.0 GFLOP/s"
    result.mfu = entry["mfu"] = 0.41234
    assert _speed(result, 4.0) == figures | {"bytes_per_second": 4_938, "mfu": 0.4123}
    assert _as_text(entry, 4.0) == "1,235 tokens/s, 4,938 bytes/s, 37,000.0 GFLOP/s, MFU 41.2%"
    result.tokens_per_second = 0.0
    assert _speed(result, 4.0) == {}


class TestWhereATrainingStarts:
    """`_start`, run by run."""

    @pytest.fixture
    def cold(self, tmp_path: Path) -> ModelFolder:
        return ModelFolder(written(tmp_path / "initialized", seed=1, changed={5: "neu"}))

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "sft_checkpoint"

    def start(self, place: Path, cold: ModelFolder, *, warm: bool, what: str, made_of: str = "base") -> tuple[str, str]:
        context: Any = SimpleNamespace(log=dg.get_dagster_logger())
        tokenizer = TokenizerFolder(cold.path) if warm else None
        place.mkdir(exist_ok=True)
        model, told = _start(context, place, cold, tokenizer, 10, what, made_of)
        return model.path.name, told

    def finish(self, place: Path) -> None:
        shutil.rmtree(place / "final_model", ignore_errors=True)
        written(place / "final_model", seed=2)

    def test_a_run_made_again_starts_from_what_it_started_from(self, place: Path, cold: ModelFolder) -> None:
        assert self.start(place, cold, warm=True, what="first") == ("initialized", COLD)
        self.finish(place)
        assert self.start(place, cold, warm=True, what="first") == ("initialized", COLD)
        assert self.start(place, cold, warm=True, what="second") == ("warm_start", WARM)
        self.finish(place)
        assert self.start(place, cold, warm=True, what="second") == ("warm_start", WARM)

    def test_a_model_trained_before_warm_starts_were_asked_for_will_do(self, place: Path, cold: ModelFolder) -> None:
        self.start(place, cold, warm=False, what="first")
        self.finish(place)
        assert self.start(place, cold, warm=True, what="second") == ("warm_start", WARM)

    def test_a_model_of_another_base_or_another_held_out_text_will_not(self, place: Path, cold: ModelFolder) -> None:
        self.start(place, cold, warm=False, what="first")
        self.finish(place)
        assert self.start(place, cold, warm=True, what="second", made_of="other") == ("initialized", COLD)
        assert not (place / "warm_start").exists()
