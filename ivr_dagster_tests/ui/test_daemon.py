"""The real daemon at work: a dropped file is rebuilt from without a hand, a terminated training is gone on with."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsing import IVR, DagsterUi, environment, serving

from ivr_dagster_tests.small_pipeline import SMALL, TINY

pytestmark = pytest.mark.browser

# slow enough to be stopped under way, with a checkpoint every few steps
LONG = """\
num_train_epochs: 30
learning_rate: 2.0e-3
per_device_train_batch_size: 4
save_steps: 10
logging_steps: 1
"""
DROP_SECONDS = 240
TERMINATE_SECONDS = 10


def settings_of(root: Path, tiny: Path, **changed: Any) -> dict[str, Any]:
    places = {"model_name": str(tiny.parent / "model"), "raw_corpora_dir": str(root / "raw")}
    return SMALL | TINY | places | {"config_path": str(root / "sft_config.yaml")} | changed


@pytest.fixture(scope="module")
def root(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built folder with a settings file: the tokenizer side is rebuilt by itself."""
    root = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("daemon") / "copy"))
    settings = settings_of(root, tiny, rebuild="tokenizer_side", quiet_seconds=2.0)
    (root / "artifacts" / "ivr.yaml").write_text(yaml.safe_dump(settings))
    return root


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[DagsterUi]:
    """`ivr ui` on it."""
    with serving(root / "artifacts", root / "ui.log") as ui:
        yield ui


def test_a_dropped_file_rebuilds_the_remapped_tokenizer_without_a_hand(
    root: Path, served: DagsterUi, capsys: pytest.CaptureFixture[str]
) -> None:
    before = served.materialized("remapped_tokenizer")
    trained = served.materialized("sft_checkpoint")
    tokenizer = (root / "artifacts/tokenizers/remapped/tokenizer.json").read_bytes()
    with (root / "raw" / "dropped.jsonl").open("w") as file:
        for number in range(60):
            text = f"A quizzical text, number {number}, which speaks of quizzical things. " * 4
            file.write(json.dumps({"text": text}) + "\n")
    dropped = time.time()
    while served.materialized("remapped_tokenizer") == before:
        assert time.time() - dropped < DROP_SECONDS, served.log.read_text(errors="replace")[-5_000:]
        time.sleep(0.5)
    with capsys.disabled():
        print(f"\nfrom the dropped file to the remapped tokenizer: {time.time() - dropped:.0f} s")  # noqa: T201
    assert (root / "artifacts/tokenizers/remapped/tokenizer.json").read_bytes() != tokenizer
    assert "quizzical" in (root / "artifacts/tokenizers/remap_rules.yaml").read_text()
    assert served.materialized("sft_checkpoint") == trained  # the costly half is paused


def test_changed_settings_reach_the_servers_by_themselves(root: Path, served: DagsterUi) -> None:
    file = root / "artifacts" / "ivr.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"rebuild": "nothing"}))
    query = """{assetNodes(assetKeys: [{path: ["cleaned_corpus"]}]) {automationCondition {label}}}"""
    deadline = time.monotonic() + 60
    while served.graphql(query)["assetNodes"][0]["automationCondition"] is not None:
        assert time.monotonic() < deadline, served.log.read_text(errors="replace")[-5_000:]
        time.sleep(0.5)


def test_a_second_ui_on_the_same_folder_is_refused(root: Path, served: DagsterUi) -> None:
    command = [IVR, "--artifacts-dir", root / "artifacts", "ui", "--port", "1"]
    refused = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 2
    assert "the UI already serves this folder" in refused.stderr


def test_a_terminated_training_ends_frees_its_place_and_goes_on_to_the_same_weights(
    root: Path, served: DagsterUi, tiny: Path, tmp_path: Path
) -> None:
    (root / "sft_config.yaml").write_text(LONG)
    before = served.launch("reordered_embeddings", "fitted_embeddings", "initialized_model", "training_blocks")
    assert served.wait_for_run(before) == "SUCCESS"
    undisturbed = tmp_path / "undisturbed"
    # without the history that the servers are writing: all of it is built again
    shutil.copytree(root, undisturbed, ignore=shutil.ignore_patterns(".dagster", "ui.log"))

    place = root / "artifacts/training/sft_checkpoint"
    run = served.launch("sft_checkpoint")
    deadline = time.monotonic() + 120
    # the training before this one had fewer steps
    while not any(int(each.parent.name.rpartition("-")[2]) > 10 for each in place.glob("checkpoint-*/complete.json")):
        assert time.monotonic() < deadline
        assert served.status(run) not in ("SUCCESS", "FAILURE"), "it ended before it could be stopped"
        time.sleep(0.05)
    asked = time.monotonic()
    served.terminate(run)
    while served.status(run) != "CANCELED":
        assert time.monotonic() - asked < TERMINATE_SECONDS, served.status(run)
        time.sleep(0.1)
    while served.slots_taken("accelerator"):
        assert time.monotonic() - asked < 60
        time.sleep(0.5)

    again = served.launch_again(run)
    assert served.wait_for_run(again) == "SUCCESS"
    resumed = """{assetOrError(assetKey: {path: ["sft_checkpoint"]}) {... on Asset {
        assetMaterializations(limit: 1) {metadataEntries {label ... on IntMetadataEntry {intValue}}}}}}"""
    entries = served.graphql(resumed)["assetOrError"]["assetMaterializations"][0]["metadataEntries"]
    assert {entry["label"]: entry.get("intValue") for entry in entries}["resumed_from_step"] > 10

    (undisturbed / "artifacts" / "ivr.yaml").write_text(yaml.safe_dump(settings_of(undisturbed, tiny, vanilla=False)))
    command = [IVR, "--artifacts-dir", undisturbed / "artifacts", "run", "--until", "train"]
    subprocess.run(command, env=environment(), check=True, timeout=300)
    weights = [each / "artifacts/training/sft_checkpoint/final_model/model.safetensors" for each in (root, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
