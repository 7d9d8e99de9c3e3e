"""Out of memory: recognizing it, training with smaller micro-batches, and the error if these are too large as well."""

import gc

from ivr_dagster.core.training.sft_config import SftConfig
from ivr_dagster.errors import short_message

# how libraries report, in a RuntimeError, that they lack memory which a smaller batch may not need
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "_ALLOC_FAILED")


class TrainingOutOfMemoryError(RuntimeError):
    """The device has too little memory, even for one block at a time."""


def free_memory() -> None:
    """Return the memory of an earlier run in this process to the device."""
    import torch

    gc.collect()  # a Trainer refers to itself
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or this machine ran out of memory."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def with_smaller_batches(config: SftConfig, *, validated: bool) -> SftConfig | None:
    """The same steps with micro-batches divided by their smallest prime factor.

    None if a micro-batch is one block, or if dropping the last incomplete batch requires the same micro-batches.
    """
    batch = config.batch
    evaluated = config.arguments.get("per_device_eval_batch_size", 8) if validated else 1  # 8 is Trainer's default
    pieces = next((n for n in range(2, batch + 1) if batch % n == 0), 1)
    if (pieces == 1 and evaluated == 1) or config.arguments.get("dataloader_drop_last"):
        return None
    return config.with_arguments(
        per_device_train_batch_size=batch // pieces,
        gradient_accumulation_steps=config.accumulated * pieces,
        per_device_eval_batch_size=min(evaluated, batch // pieces),
    )


def out_of_memory_error(
    error: Exception, config: SftConfig, device: str, block_size: int, processes: int
) -> TrainingOutOfMemoryError:
    """The error that says which settings need less memory.

    Args:
        error: what the library raised.
        config: the settings of one process.
        device: cpu, cuda or mps.
        block_size: tokens per block.
        processes: number of processes.
    """
    batch = config.batch
    smaller = f"a per_device_train_batch_size below {batch} with more gradient_accumulation_steps, "
    return TrainingOutOfMemoryError(
        f"{config.source}: out of memory on {device} with {batch} block{'s' * (batch > 1)} of {block_size:,} tokens at "
        f"a time{f' in each of {processes} processes' if processes > 1 else ''} ({short_message(error)}): set "
        f"{smaller if batch > 1 else ''}a smaller --block-size, gradient_checkpointing: true, --dtype bfloat16 if the "
        "device supports it, or use a device with more memory. Checkpoints are kept"
    )
