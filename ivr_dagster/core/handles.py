"""Handles of artifacts that are folders: cheap to pass from step to step, opened where they are needed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from ivr_dagster.core.atomic import replacing
from ivr_dagster.core.errors import InputError
from ivr_dagster.core.faults import first_words
from ivr_dagster.core.model_files import CONFIG, model_files, read_config
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokens.tokenizer_file import FileAsItIs, read_known

# tokens of the longest blocks and windows, whatever a model could read
MOST_AT_ONCE = 1024
HISTORY = "history.json"
COUNTS = "counts.json"
STUDY = "study.json"

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@lru_cache(maxsize=2)
def _read_bpe(file: FileAsItIs) -> ByteLevelBPE:
    try:
        return read_bpe(read_known(file))
    except InputError as error:
        raise InputError(error.message, where=error.where or file.path, remedy=error.remedy) from error


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder that `AutoTokenizer.from_pretrained` loads; its `tokenizer.json` is all that encoding takes."""

    path: Path

    def backend(self) -> Tokenizer:
        """The tokenizer itself, without transformers around it; the same object for the same file, not to be changed.

        Raises:
            InputError: there is none.
        """
        return read_known(self._file())

    def bpe(self) -> ByteLevelBPE:
        """The BPE inside it.

        Raises:
            InputError: there is none, or its model is not a byte-level BPE.
        """
        return _read_bpe(self._file())

    def _file(self) -> FileAsItIs:
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise InputError(
                "no tokenizer there", where=file, remedy="Materialize it, or give a folder with a tokenizer.json."
            )
        return FileAsItIs.of(file)

    def load(self) -> "PreTrainedTokenizerFast":
        """The tokenizer as transformers has it: special tokens, chat template, padding side.

        Raises:
            InputError: there is none, or its settings cannot be read or ask for code of its own.
        """
        from transformers import AutoTokenizer

        self.backend()  # a clearer error than transformers' where there is none
        try:
            loaded: Any = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a class makes of settings that make no sense
            raise InputError(
                f"the tokenizer cannot be loaded ({first_words(error)})",
                where=self.path / "tokenizer_config.json",
                remedy="Give a folder that save_pretrained wrote; code that comes with a tokenizer is never run.",
            ) from error
        tokenizer: PreTrainedTokenizerFast = loaded
        return tokenizer

    def end_of_text_id(self) -> int:
        """The id that stands between documents.

        Raises:
            InputError: the tokenizer names no end-of-text token.
        """
        eos_id: Any = self.load().eos_token_id
        if eos_id is None:
            raise InputError(
                "the tokenizer has no end-of-text token",
                where=self.path,
                remedy="Set eos_token in tokenizer_config.json.",
            )
        return int(eos_id)


@dataclass(frozen=True)
class ModelFolder:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads, from safetensors alone."""

    path: Path

    def context(self) -> int | None:
        """Tokens that the model reads at once, None where its configuration does not say.

        Raises:
            InputError: the configuration is none that transformers knows.
        """
        from transformers import AutoConfig

        read_config(self.path)
        try:
            config = AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a class makes of settings that make no sense
            raise self._unknown(error) from error
        return getattr(config, "max_position_embeddings", None)

    def tokens_at_once(self) -> int:
        """Tokens that the model is given at once in training and evaluation: its context, `MOST_AT_ONCE` at most."""
        return min(self.context() or MOST_AT_ONCE, MOST_AT_ONCE)

    def load(self, dtype: str = "auto") -> "PreTrainedModel":
        """The model on the CPU, in the dtype it is stored in unless told otherwise.

        Raises:
            InputError: no model there, weights in another format than safetensors, damaged, or not all that the model
                has, or code of its own.
        """
        from transformers import AutoModelForCausalLM

        model_files(self.path)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.path,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except MemoryError:
            raise
        except Exception as error:  # whatever a class makes of weights that do not fit it
            raise self._unknown(error) from error
        model: PreTrainedModel = loaded[0]
        missing = sorted(loaded[1]["missing_keys"])
        if missing:  # transformers would go on with random numbers in their place
            raise InputError(
                f"the weights lack {len(missing):,} tensors that the model has, {missing[0]} is the first",
                where=self.path,
                remedy="Fetch the model anew; all its files have to be of one making.",
            )
        model.eval()
        return model

    def _unknown(self, error: Exception) -> InputError:
        return InputError(
            f"no causal language model that transformers can load ({first_words(error)})",
            where=self.path / CONFIG,
            remedy="Give a folder that save_pretrained wrote, of a class that is part of transformers; code that comes "
            "with a model is never run.",
        )


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
    ) -> None:
        """Keep steps, tokens, (step, loss in nats per token) and (step, validation in bits per byte) for the plots."""
        content = {
            "steps": steps,
            "tokens": tokens,
            "losses": [list(entry) for entry in losses],
            "validation": [list(entry) for entry in validation],
        }
        with replacing(self.path / HISTORY) as staged:
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


@dataclass(frozen=True)
class ReportFolder:
    """`report.json`, `report.md` and the plots it shows."""

    path: Path
