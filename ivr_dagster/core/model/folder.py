"""The handle of a model folder: cheap to pass between steps, opened where it is needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivr_dagster.core.model.files import CONFIG, model_files, read_config
from ivr_dagster.errors import InputError, short_message

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# tokens of the longest blocks and windows, whatever a model could read
MOST_AT_ONCE = 1024


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
            f"no causal language model that transformers can load ({short_message(error)})",
            where=self.path / CONFIG,
            remedy="Give a folder that save_pretrained wrote, of a class that is part of transformers; code that comes "
            "with a model is never run.",
        )
