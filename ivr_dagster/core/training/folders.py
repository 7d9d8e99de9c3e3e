"""Handles of the folders that training writes; the data is read on demand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_copy, write_tokenizer
from ivr_dagster.core.training.checkpoints import FINAL_MODEL
from ivr_dagster.storage.atomic import atomic_write
from ivr_dagster.storage.content_hash import hash_files

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
        return ModelFolder(self.path / FINAL_MODEL)

    def write_history(
        self,
        steps: int,
        tokens: int,
        losses: Sequence[tuple[int, float]],
        validation: Sequence[tuple[int, float]] = (),
        *,
        bytes_per_token: float | None = None,
        text_bytes: int | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        unseen_new_tokens: Sequence[int] = (),
    ) -> None:
        """Record a run for the evaluation.

        Args:
            steps: optimizer steps.
            tokens: tokens trained on, including repetitions.
            losses: (step, loss in nats per token).
            validation: (step, validation in bits per byte).
            bytes_per_token: UTF-8 bytes per token of the training text; None if unknown.
            text_bytes: UTF-8 bytes of the training text, without repetitions; None if unknown.
            hyperparameters: training settings by name, as JSON values.
            unseen_new_tokens: ids of new tokens that the training blocks do not contain.
        """
        content = {
            "steps": steps,
            "tokens": tokens,
            "losses": [list(entry) for entry in losses],
            "validation": [list(entry) for entry in validation],
            "bytes_per_token": bytes_per_token,
            "text_bytes": text_bytes,
            "hyperparameters": dict(hyperparameters or {}),
            "unseen_new_tokens": list(unseen_new_tokens),
        }
        with atomic_write(self.path / HISTORY) as staged:
            staged.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def history(self) -> dict[str, Any]:
        """`steps`, `tokens`, `losses` and `validation` of the run that made the final model."""
        content: dict[str, Any] = json.loads((self.path / HISTORY).read_text(encoding="utf-8"))
        return content


@dataclass(frozen=True)
class TuningFolder:
    """A search for training settings: Optuna's `study.db`, `study.json`, the best `sft_config.yaml`, plots."""

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
    """Packed blocks of the same documents under the tokenizers `remapped` and `base`, which it contains.

    External blocks may lack the tokenizers, the validation text and the counts.
    """

    path: Path

    def train(self, tokenizer: str) -> Path:
        """The blocks to train on, a folder of `datasets`."""
        return self.path / tokenizer

    @property
    def validation(self) -> Path:
        """The text to validate on, for `Validation.read`; the file is missing if there is none."""
        return self.path / "validation.json"

    def tokenizer(self, tokenizer: str) -> TokenizerFolder | None:
        """The tokenizer of a set of blocks."""
        folder = self.path / "tokenizers" / tokenizer
        return TokenizerFolder(folder) if folder.is_dir() else None

    def digest(self) -> str:
        """A hash of the blocks and the tokenizers; what initialization cost does not change them."""
        files = (file for file in self.path.rglob("*") if file.is_file() and file.name != COUNTS)
        return hash_files(self.path, files)

    def write_tokenizers(self, tokenizer: TokenizerFolder, *, base: bool) -> None:
        """Write the remapped tokenizer, and with `base` its base tokenizer."""
        folder = self.path / "tokenizers" / "remapped"
        folder.mkdir(parents=True)
        write_copy(tokenizer, folder)
        if base:
            write_tokenizer(tokenizer.base_backend(), tokenizer.path, folder.with_name("base"))

    def write_counts(self, text_bytes: int, tokens: Mapping[str, int], initialization_tokens: float) -> None:
        """Write what was counted.

        Args:
            text_bytes: UTF-8 bytes of the text to train on.
            tokens: its tokens by tokenizer.
            initialization_tokens: tokens of fine-tuning that cost as much as the initialization of new rows.
        """
        content = {
            "bytes": text_bytes,
            "tokens": dict(tokens),
            "initialization_tokens": initialization_tokens,
        }
        (self.path / COUNTS).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def text_bytes(self) -> int | None:
        """UTF-8 bytes of the text to train on; None for external blocks."""
        content = self._counts()
        return int(content["bytes"]) if content else None

    def bytes_per_token(self, tokenizer: str) -> float | None:
        """UTF-8 bytes per token of the text to train on; None for external blocks."""
        content = self._counts()
        tokens = content.get("tokens", {}).get(tokenizer)
        return float(content["bytes"] / tokens) if tokens else None

    def initialization_tokens(self) -> float:
        """Tokens of fine-tuning that cost as much as the initialization of new rows; 0 for external blocks."""
        return float(self._counts().get("initialization_tokens", 0.0))

    def _counts(self) -> dict[str, Any]:
        file = self.path / COUNTS
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return content
