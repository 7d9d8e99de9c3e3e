"""transformers' Trainer with learning rates for embedding rows, and the same steps for any number of processes.

Trainer distributes the blocks in an order that depends on the number of processes, and repeats blocks to fill the last
batch. Here every process iterates over the batches of a single process and keeps every N-th block; the loss of a step
is the mean over all tokens of all its blocks. Import this module inside functions: it imports transformers.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ivr_dagster.core.embedding.new_rows import RowRates, RowUpdates, embedding_parameters
from ivr_dagster.core.training.blocks import COLUMN
from ivr_dagster.core.training.callbacks import BITS_PER_BYTE

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
        bytes_per_token: UTF-8 bytes per token of the validation text.
    """

    rates: RowRates
    new_tokens: Mapping[int, str]
    bytes_per_token: float

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
        return self._shared_batches(
            self.train_dataset,
            self.args.train_batch_size,
            sampler=self._get_train_sampler(),
            drop_last=self.args.dataloader_drop_last,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        if self.args.world_size == 1:
            return super().get_eval_dataloader(eval_dataset)
        return self._shared_batches(self.eval_dataset, self.args.eval_batch_size)

    def _shared_batches(self, dataset: Any, blocks_each: int, **order: Any) -> DataLoader[Any]:
        """The batches of a single process, of which collating keeps this process's share."""
        args = self.args
        whole = DataLoader(
            dataset,
            batch_size=blocks_each * args.world_size,
            collate_fn=partial(collate, index=args.process_index, processes=args.world_size),
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            pin_memory=args.dataloader_pin_memory,
            **order,
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

    def evaluation_loop(self, dataloader: Any, *arguments: Any, **options: Any) -> Any:
        alone = self.args.world_size == 1
        output: Any = (
            super().evaluation_loop(dataloader, *arguments, **options) if alone else self._mean_loss(dataloader)
        )
        output.metrics[BITS_PER_BYTE] = output.metrics["eval_loss"] / math.log(2) / self.bytes_per_token
        return output

    def _mean_loss(self, dataloader: Any) -> EvalLoopOutput:
        """The mean loss of all blocks, each read by one process; Trainer would count some blocks twice."""
        total = torch.zeros(2, dtype=torch.float64)
        model: Any = self.model
        model.eval()
        with torch.no_grad():
            for inputs in dataloader:
                blocks = len(_with_labels(inputs))
                if blocks:
                    total += torch.tensor([model(**inputs).loss.item() * blocks, blocks], dtype=torch.float64)
        loss, blocks = self.accelerator.reduce(total.to(self.args.device), "sum").tolist()
        return EvalLoopOutput(np.empty(0), None, {"eval_loss": loss / blocks}, int(blocks))


def _with_labels(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Ids of the blocks in a batch, without the placeholder of an empty one."""
    ids, labels = inputs["input_ids"], inputs["labels"]
    return ids[:0] if labels[0, 0] == _NO_LABEL else ids
