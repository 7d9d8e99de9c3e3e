"""transformers' Trainer with learning rates for embedding rows, and the same steps for any number of processes.

Trainer distributes the blocks in an order that depends on the number of processes, and repeats blocks to fill the last
batch. Here every process iterates over the batches of a single process and keeps every N-th block; the loss of a step
is the mean over all tokens of all its blocks. Import this module inside functions: it imports transformers.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer

from ivr_dagster.core.embedding.new_rows import RowRates, RowUpdates, embedding_parameters
from ivr_dagster.core.scoring.bits_per_byte import ScoringTokenizer
from ivr_dagster.core.training.blocks import COLUMN
from ivr_dagster.core.training.callbacks import BITS_PER_BYTE
from ivr_dagster.core.training.validation import Validation

# the label that torch's cross entropy ignores
_NO_LABEL = -100


def collate(rows: list[dict[str, Any]], index: int = 0, processes: int = 1) -> dict[str, torch.Tensor]:
    """Blocks to a batch: int64 ids `[batch, block_size]`, which are also the labels (the model shifts them).

    Args:
        rows: blocks of one batch.
        index: rank of this process.
        processes: number of processes that share the batch. One without a block gets two tokens without a label,
            because every process has to take part in every step.
    """
    mine = rows[index::processes]
    if not mine:
        return {"input_ids": torch.zeros(1, 2, dtype=torch.int64), "labels": torch.full((1, 2), _NO_LABEL)}
    ids = torch.from_numpy(np.stack([row[COLUMN] for row in mine]).astype(np.int64))
    return {"input_ids": ids, "labels": ids}


class RowTrainer(Trainer):
    """The Trainer of a run.

    Attributes:
        rates: learning rates of embedding rows.
        new_tokens: byte-level string by id.
        scoring: the model's tokenizer; needed for validation only.
        eval_dataset: the text to validate on.
    """

    rates: RowRates
    new_tokens: Mapping[int, str]
    scoring: ScoringTokenizer
    eval_dataset: Validation

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        rates = self.rates
        for_all = RowRates(kept=rates.kept, floored=rates.floored)
        if self.optimizer is not None or (rates if self.new_tokens else for_all) == RowRates():
            return super().create_optimizer(model)
        matrices = embedding_parameters(self.model)
        rows = RowUpdates(matrices, self.new_tokens, rates)
        for matrix in matrices:  # exclude them from the groups that Trainer makes
            matrix.requires_grad_(False)
        optimizer = super().create_optimizer(model)
        for matrix in matrices:
            matrix.requires_grad_(True)
        for group in rows.parameter_groups(self.args.learning_rate, self.args.weight_decay):
            optimizer.add_param_group(group)
        rows.attach(optimizer)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        args = self.args
        # the batches of a single process, of which collating keeps this process's share
        whole = DataLoader(
            cast(Any, self.train_dataset),
            batch_size=args.train_batch_size * args.world_size,
            sampler=self._get_train_sampler(),
            collate_fn=partial(collate, index=args.process_index, processes=args.world_size),
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        loader: DataLoader[Any] = prepare_data_loader(
            whole,
            args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,
            data_seed=args.data_seed,
        )
        return loader

    def _track_num_input_tokens(self, inputs: dict[str, torch.Tensor]) -> None:
        count: Any = super()._track_num_input_tokens
        count(inputs if self.args.world_size == 1 else {COLUMN: _with_labels(inputs)})

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Measure bits per byte of the validation text; every process scores its share of the documents."""
        args, blocks = self.args, cast(Dataset, self.train_dataset)
        score = self.eval_dataset.score(
            self.model,
            self.scoring,
            block_size=blocks.features[COLUMN].length,
            batch=args.eval_batch_size,
            device=str(args.device),
            rank=args.process_index,
            processes=args.world_size,
        )
        bits, size = (0.0, 0.0) if score is None else (score.bits, float(score.bytes))
        if args.world_size > 1:
            share = torch.tensor([bits, size], dtype=torch.float64, device=args.device)
            bits, size = self.accelerator.reduce(share, "sum").tolist()
        metrics = {BITS_PER_BYTE: bits / size}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics


def _with_labels(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Ids of the blocks in a batch, without the placeholder of an empty one."""
    ids, labels = inputs["input_ids"], inputs["labels"]
    return ids[:0] if labels[0, 0] == _NO_LABEL else ids
