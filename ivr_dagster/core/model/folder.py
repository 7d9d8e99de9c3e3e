"""Model folders: cheap handles to pass between steps, and the compute spent before fine-tuning."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivr_dagster.core.model.files import CONFIG, read_config, weight_files
from ivr_dagster.errors import InputError, short_message

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# maximum tokens per training block and evaluation window, even if the model's context is longer
MAX_SEQUENCE_TOKENS = 1024
INITIALIZATION_COMPUTE = "initialization_compute.json"


@dataclass(frozen=True)
class InitializationCompute:
    """Tokens that the base model read to initialize new rows, before fine-tuning.

    Attributes:
        calibration_tokens: read by calibration, forward passes only.
        distillation_tokens: read by token distillation; its backward pass computes gradients of embeddings only.
        distillation_base_tokens: read by token distillation's teacher, forward passes only.
    """

    calibration_tokens: int = 0
    distillation_tokens: int = 0
    distillation_base_tokens: int = 0

    @property
    def training_tokens(self) -> float:
        """The number of fine-tuning tokens with the same compute.

        A training step costs one unit for the forward pass and two for the backward pass; a backward pass without
        weight gradients costs one. Calibration's few multiplications by the output matrix are not counted.
        """
        return self.distillation_tokens * 2 / 3 + (self.distillation_base_tokens + self.calibration_tokens) / 3

    def write(self, folder: Path) -> None:
        """Write the figures into a model folder."""
        (folder / INITIALIZATION_COMPUTE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class ModelFolder:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads, from safetensors only."""

    path: Path

    def context(self) -> int | None:
        """The model's context length in tokens, None if its configuration does not state it.

        Raises:
            InputError: transformers does not accept the configuration.
        """
        from transformers import AutoConfig

        read_config(self.path)
        try:
            config = AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # configuration classes may raise any exception
            raise self._not_loadable(error) from error
        return getattr(config, "max_position_embeddings", None)

    def sequence_tokens(self) -> int:
        """Maximum sequence length in training and evaluation: the context length, capped at `MAX_SEQUENCE_TOKENS`."""
        return min(self.context() or MAX_SEQUENCE_TOKENS, MAX_SEQUENCE_TOKENS)

    def initialization_compute(self) -> InitializationCompute:
        """The compute spent before fine-tuning; zeros if the folder does not record it."""
        file = self.path / INITIALIZATION_COMPUTE
        return InitializationCompute(**json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})

    def load(self, dtype: str = "auto") -> "PreTrainedModel":
        """Load the model on the CPU, by default in the stored dtype.

        Raises:
            InputError: no model, weights incomplete, damaged or not in safetensors format, or remote code required.
        """
        from transformers import AutoModelForCausalLM

        weight_files(self.path)
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
        except Exception as error:  # model classes may raise any exception
            raise self._not_loadable(error) from error
        model: PreTrainedModel = loaded[0]
        missing = sorted(loaded[1]["missing_keys"])
        if missing:  # transformers would initialize them randomly
            raise InputError(
                f"the weights lack {len(missing):,} of the model's tensors, the first is {missing[0]}",
                where=self.path,
                remedy="Download the model again, all files from the same revision.",
            )
        model.eval()
        return model

    def _not_loadable(self, error: Exception) -> InputError:
        return InputError(
            f"transformers cannot load a causal language model ({short_message(error)})",
            where=self.path / CONFIG,
            remedy="Pass a folder written by save_pretrained, of a class in transformers; remote code is never run.",
        )
