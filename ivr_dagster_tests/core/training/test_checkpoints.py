from pathlib import Path

from ivr_dagster.core.training.checkpoints import discard_others, mark_complete, newest_complete

RUN: dict[str, object] = {"fingerprint": "a"}
OTHER: dict[str, object] = {"fingerprint": "b"}


def checkpoint(output_dir: Path, step: int, run: dict[str, object] | None) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    if run is not None:
        mark_complete(folder, run)
    return folder


def test_newest_complete_checkpoint_has_the_highest_step(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9, RUN)
    wanted = checkpoint(tmp_path, 10, RUN)
    checkpoint(tmp_path, 11, None)
    checkpoint(tmp_path, 12, OTHER)
    assert newest_complete(tmp_path, RUN) == wanted


def test_incomplete_and_other_checkpoints_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = checkpoint(tmp_path, 1, RUN)
    gone = [checkpoint(tmp_path, 2, None), checkpoint(tmp_path, 3, OTHER)]
    (checkpoint(tmp_path, 4, RUN) / "complete.json").write_text("{")
    (tmp_path / "checkpoint-of-mine").mkdir()
    assert discard_others(tmp_path, RUN) == [*gone, tmp_path / "checkpoint-4"]
    assert sorted(tmp_path.iterdir()) == [kept, tmp_path / "checkpoint-of-mine"]


def test_folder_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert newest_complete(tmp_path / "nowhere", RUN) is None
    assert discard_others(tmp_path / "nowhere", RUN) == []
