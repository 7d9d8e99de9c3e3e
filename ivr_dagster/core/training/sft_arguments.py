"""The arguments of a fine-tuning run: transformers' TrainingArguments and the settings that this project adds.

Import this module inside functions: it imports transformers. The defaults of a run are in `sft_config.yaml`.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ivr_dagster.core.training.trainable import TRAINABLE


@dataclass
class SftArguments(TrainingArguments):
    """TrainingArguments with learning rates for embedding rows; without these it trains as Trainer does."""

    new_row_rate: float = field(
        default=1.0, metadata={"help": "Learning rate of rows of new tokens, as a factor of learning_rate."}
    )
    shared_row_rate: float = field(
        default=0.0,
        metadata={"help": "Learning rate that new tokens share by their n-grams, as a factor of learning_rate."},
    )
    kept_row_rate: float = field(
        default=1.0, metadata={"help": "Learning rate of rows of kept tokens, as a factor of learning_rate."}
    )
    second_moment_floor: bool = field(
        default=False, metadata={"help": "Raise Adam's second moments of embedding rows to at least their mean."}
    )
    trainable: str = field(
        default="all",
        metadata={
            "help": "What is trained: all parameters, or the embeddings and nothing else, the first and last layer, or "
            "low-rank updates of the linear layers.",
            "choices": TRAINABLE,
        },
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of low-rank updates."})
    embedding_phase: float = field(
        default=0.0, metadata={"help": "Share of all steps, at the beginning, that train the embeddings only."}
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after this many validations without improvement; 0: never."}
    )
    logging_dir: str | None = field(
        default=None, metadata={"help": "Folder of TensorBoard's files. Default: logs/ in the output folder."}
    )
