"""Handles of the folders that training writes: cheap to pass between steps, opened where they are needed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.storage.atomic import atomic_write

HISTORY = "history.json"
COUNTS = "counts.json"
STUDY = "study.json"


@dataclass(frozen=True)
class TrainedModel:
    """A training folder: `checkpoint-N/`, `logs/` and the `final_model/`."""

    path: Path

    @property
    def final_model(self) -> ModelFolder:
        """The fine-tuned model with its tokenizer."""
        return ModelFolder(self.path / "final_model")

    def write_history(
        self,
        steps: int,
        tokens: int,
        losses: Sequence[tuple[int, float]],
        validation: Sequence[tuple[int, float]] = (),
        *,
        bytes_per_token: float | None = None,
        text_bytes: int | None = None,
    ) -> None:
        """Record a run for the evaluation.

        Args:
            steps: optimizer steps.
            tokens: tokens trained on, including repetitions.
            losses: (step, loss in nats per token).
            validation: (step, validation in bits per byte).
            bytes_per_token: UTF-8 bytes per token of the training text; None if unknown.
            text_bytes: UTF-8 bytes of the training text, without repetitions; None if unknown.
        """
        content = {
            "steps": steps,
            "tokens": tokens,
            "losses": [list(entry) for entry in losses],
            "validation": [list(entry) for entry in validation],
            "bytes_per_token": bytes_per_token,
            "text_bytes": text_bytes,
        }
        with atomic_write(self.path / HISTORY) as staged:
            staged.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def history(self) -> dict[str, Any]:
        """`steps`, `tokens`, `losses` and `validation` of the run that made the final model."""
        content: dict[str, Any] = json.loads((self.path / HISTORY).read_text(encoding="utf-8"))
        return content


@dataclass(frozen=True)
class TuningFolder:
    """A search for training settings: Optuna's `study.db`, `study.json`, the best as `sft_config.yaml`, plots."""

    path: Path

    @property
    def sft_config(self) -> Path:
        """The best settings found."""
        return self.path / "sft_config.yaml"

    def study(self) -> dict[str, Any]:
        """`best` and `default` by number, and all `trials` of the search."""
        content: dict[str, Any] = json.loads((self.path / STUDY).read_text(encoding="utf-8"))
        return content


@dataclass(frozen=True)
class TrainingBlocks:
    """Packed blocks of the same documents under two tokenizers, `remapped/` and `base/`, folders of `datasets`."""

    path: Path

    def validation(self, tokenizer: str) -> Path:
        """Blocks of documents kept from training, under `remapped` or `base`; absent where there are none."""
        return self.path / f"validation_{tokenizer}"

    def write_counts(self, sizes: Mapping[str, int], tokens: Mapping[str, Mapping[str, int]]) -> None:
        """Keep the UTF-8 bytes of the packed texts, `train` and `validation`, and their tokens by tokenizer."""
        content = {"bytes": dict(sizes), "tokens": {name: dict(counts) for name, counts in tokens.items()}}
        (self.path / COUNTS).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def text_bytes(self) -> int | None:
        """UTF-8 bytes of the text to train on; None for foreign blocks."""
        content = self._counts()
        return int(content["bytes"]["train"]) if content else None

    def bytes_per_token(self, tokenizer: str, part: str = "train") -> float | None:
        """UTF-8 bytes a token of the packed text, `tokenizer` being `remapped` or `base`; None for foreign blocks."""
        content = self._counts()
        tokens = content["tokens"].get(tokenizer, {}).get(part) if content else None
        return float(content["bytes"][part] / tokens) if content and tokens else None

    def _counts(self) -> dict[str, Any] | None:
        file = self.path / COUNTS
        content: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return content
