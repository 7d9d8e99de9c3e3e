"""Token distillation: trains rows of new tokens to imitate the base model on their constituents; all else is frozen.

After Dobler, Elliott and de Melo (Token Distillation, 2025). The frozen model reads each snippet of the corpus twice:
with the constituents in place of new tokens (teacher) and with the new tokens' rows (student). At the end of a token,
both should produce the same last hidden state h. This objective trains input rows only; output rows (tied or untied)
are trained by the likelihood of the next token. The loss is

    hidden_weight · mean over positions of ‖h − h'‖² / ‖h'‖²  +  mean over positions of −log p(next token)

where h' is the teacher's last hidden state, after the final norm, at the last constituent.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.embedding.new_rows import RowRates, RowUpdates
from ivr_dagster.errors import InputError
from ivr_dagster.storage.atomic import atomic_write

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ivr_dagster.core.embedding.extract import Embeddings

# warmup as a share of the steps, and the final learning rate relative to the peak
_WARMUP, _FINAL = 0.1, 0.1
# about half a minute for a small model on a CPU
CHECKPOINT_STEPS = 20

Losses = list[tuple[int, float]]


@dataclass(frozen=True)
class Snippet:
    """A piece of a document under both tokenizers.

    Attributes:
        ids: int64 `[n]`, remapped tokenizer, starting with the end-of-text token.
        base_ids: int64 `[m]`, base tokenizer: constituents in place of new tokens.
        ends: int64 `[n]`, index in `base_ids` of each token's last constituent.
    """

    ids: NDArray[np.int64]
    base_ids: NDArray[np.int64]
    ends: NDArray[np.int64]


def cut_snippets(
    sequences: Sequence[Sequence[int]], constituents: Mapping[int, Sequence[int]], *, eos_id: int, length: int
) -> Iterator[Snippet]:
    """Cut documents into snippets of at most `length` base tokens, each starting with the end-of-text token.

    Args:
        sequences: ids of documents under the remapped tokenizer.
        constituents: id of each new token → its base ids; other ids are the same in both tokenizers.
        eos_id: end-of-text id.
        length: maximum base tokens per snippet; a token with more constituents forms a longer snippet by itself.
    """
    for sequence in sequences:
        ids, base, ends = [eos_id], [eos_id], [0]
        for token in sequence:
            parts = constituents.get(token, (token,)) or (eos_id,)
            if len(base) + len(parts) > length and len(ids) > 1:
                yield Snippet(np.array(ids), np.array(base), np.array(ends))
                ids, base, ends = [eos_id], [eos_id], [0]
            ids.append(token)
            base.extend(parts)
            ends.append(len(base) - 1)
        if len(ids) > 1:
            yield Snippet(np.array(ids), np.array(base), np.array(ends))


@dataclass(frozen=True)
class DistillationOptions:
    """How rows of new tokens are trained.

    Attributes:
        learning_rate: for a row's own gradients.
        shared_rate: factor of `learning_rate` for the gradients of n-grams that new tokens share.
        hidden_weight: weight of the hidden state distance; 0 skips the teacher.
        epochs: how often the snippets are read, in an order given by `seed`.
        batch: snippets per step.
        seed: of that order.
        device, dtype: cpu, cuda or mps; float32 or float64, or bfloat16 or float16 for mixed precision.
    """

    learning_rate: float = 3e-3
    shared_rate: float = 1.0
    hidden_weight: float = 1.0
    epochs: float = 1.0
    batch: int = 4
    seed: int = 42
    device: str = "cpu"
    dtype: str = "float32"


class RowObjective:
    """The loss as a function of the new rows; only `rows` has gradients.

    Attributes:
        rows: `wte` and, if untied, `lm_head` → parameter [new tokens, d], ordered by id.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        base: "Embeddings",
        initial: "Embeddings",
        new_ids: Sequence[int],
        options: DistillationOptions,
    ) -> None:
        """Arguments as for :func:`fit_new_rows`."""
        import torch

        device, computed = options.device, getattr(torch, options.dtype)
        self._autocast = computed if computed in (torch.bfloat16, torch.float16) else None
        self._stored = torch.float32 if self._autocast else computed
        self._device, self._hidden_weight = device, options.hidden_weight
        body: Any = model
        self.model: Any = body.to(device, self._stored).eval().requires_grad_(False)
        self._base = base["wte"].to(device, self._stored)
        self._matrices = {name: rows.to(device, self._stored) for name, rows in initial.items()}
        names = {id(each): name for name, each in self.model.named_parameters()}
        modules = {"wte": self.model.get_input_embeddings(), "lm_head": self.model.get_output_embeddings()}
        self._names = {name: names[id(modules[name].weight)] for name in modules if name in initial}
        self._new = torch.tensor(sorted(new_ids), dtype=torch.long, device=device)
        self.rows = {
            name: torch.nn.Parameter(matrix[self._new].clone())
            for name, matrix in self._matrices.items()
            if matrix.dim() == 2
        }

    def __call__(self, snippets: Sequence[Snippet]) -> "torch.Tensor":
        """The loss of a batch; its likelihood term is in nats per token."""
        import torch

        ids, is_token = _pad([snippet.ids for snippet in snippets], self._device)
        matrices = {name: self._matrices[name].index_copy(0, self._new, rows) for name, rows in self.rows.items()}
        output = self._forward(ids, matrices, hidden=self._hidden_weight > 0)
        predicted = output.logits[:, :-1][is_token[:, 1:]].to(self._stored)
        loss = torch.nn.functional.cross_entropy(predicted, ids[:, 1:][is_token[:, 1:]])
        if self._hidden_weight:
            student, teacher = (
                each.to(self._stored)[:, 1:][is_token[:, 1:]]
                for each in (output.hidden_states[-1], self._teacher(snippets))
            )
            distance = (student - teacher).square().sum(-1) / teacher.square().sum(-1)
            loss = loss + self._hidden_weight * distance.mean()
        return loss

    def replace_rows(self, initial: "Embeddings") -> "Embeddings":
        """A copy of `initial` with the trained rows, in the dtypes of `initial`, on the CPU."""
        tensors = {name: matrix.clone() for name, matrix in initial.items()}
        for name, rows in self.rows.items():
            tensors[name][self._new.cpu()] = rows.detach().cpu().to(tensors[name].dtype)
        return tensors

    def max_kept_norm(self, name: str) -> float:
        """The largest norm of a kept row."""
        import torch

        matrix = self._matrices[name]
        is_kept = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
        is_kept[self._new] = False
        return float(matrix[is_kept].norm(dim=1).max())

    def _forward(self, ids: "torch.Tensor", matrices: "Embeddings", *, hidden: bool, **options: Any) -> Any:
        """The model's forward pass with these embeddings, including any scaling or soft-capping by the model."""
        import torch

        parameters = {self._names[name]: rows for name, rows in matrices.items()}
        inputs = {"input_ids": ids, "use_cache": False, "output_hidden_states": hidden, **options}
        precision: AbstractContextManager[Any] = nullcontext()
        if self._autocast is not None:
            precision = torch.autocast(self._device.split(":")[0], self._autocast)
        with precision:
            return torch.func.functional_call(self.model, parameters, args=(), kwargs=inputs)

    def _teacher(self, snippets: Sequence[Snippet]) -> "torch.Tensor":
        """The base model's hidden states at token ends, [batch, n, d]."""
        import torch

        ids, _ = _pad([snippet.base_ids for snippet in snippets], self._device)
        ends, _ = _pad([snippet.ends for snippet in snippets], self._device)
        with torch.no_grad():
            output = self._forward(ids, {"wte": self._base}, hidden=True, logits_to_keep=1)
        hidden: torch.Tensor = output.hidden_states[-1]
        return hidden.gather(1, ends[:, :, None].expand(-1, -1, hidden.shape[2]))


@dataclass(frozen=True)
class FittedRows:
    """Result of token distillation.

    Attributes:
        tensors: embedding tensors with trained new rows; all other rows are bitwise unchanged, dtypes too.
        losses: (step, loss) of every step.
        tokens: tokens read under the remapped tokenizer, without end-of-text tokens.
        base_tokens: tokens that the teacher read; 0 without a teacher.
        resumed_from: the step it was resumed from, None if it was not.
    """

    tensors: "Embeddings"
    losses: list[tuple[int, float]]
    tokens: int
    base_tokens: int
    resumed_from: int | None


@dataclass(frozen=True)
class DistillationCheckpoint:
    """Rows, optimizer state and losses of unfinished training.

    Attributes:
        file: a safetensors file.
        run: identifies inputs and settings; the checkpoint of another run is ignored.
    """

    file: Path
    run: str

    def save(self, objective: RowObjective, optimizer: "torch.optim.Optimizer", losses: Losses) -> None:
        """Write it atomically."""
        from safetensors.torch import save_file

        tensors = {f"rows.{name}": rows.detach() for name, rows in objective.rows.items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"state.{number}.{key}": value for key, value in state.items()}
        with atomic_write(self.file) as staged:
            save_file(tensors, staged, metadata={"run": self.run, "losses": json.dumps(losses)})

    def resume(self, objective: RowObjective, optimizer: "torch.optim.Optimizer") -> Losses:
        """Load rows and optimizer state; returns the losses so far, none if there is no checkpoint of this run."""
        import torch
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("run") != self.run:
                    return []
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError):
            return []
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            kind, place, *key = name.split(".")
            if kind == "rows":
                with torch.no_grad():
                    objective.rows[place].copy_(tensor)
            else:
                state.setdefault(int(place), {})[key[0]] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        return [(int(step), float(loss)) for step, loss in json.loads(metadata["losses"])]


def fit_new_rows(
    model: "PreTrainedModel",
    base: "Embeddings",
    initial: "Embeddings",
    new_tokens: Mapping[int, str],
    snippets: Sequence[Snippet],
    options: DistillationOptions,
    *,
    checkpoint: DistillationCheckpoint | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> FittedRows:
    """Train the rows of new tokens on snippets with AdamW.

    After every step, row norms are clipped to the largest norm of a kept row. The learning rate warms up over a tenth
    of the steps, then follows a cosine decay to a tenth of its peak. On the CPU, a resumed run ends bitwise the same.

    Args:
        model: the base model; moved to the device and float32.
        base: embedding tensors by base id, [V', d].
        initial: embedding tensors by new id, new rows initialized.
        new_tokens: id → byte-level string.
        snippets: from the train split.
        options: everything else.
        checkpoint: what to save to and to resume from.
        progress: called after every step with steps done, steps in total, and the loss.

    Raises:
        InputError: no snippets.
    """
    import torch

    if not snippets:
        raise InputError("no text to train new rows on", where="token_distillation_bytes", remedy="Provide more text.")
    objective = RowObjective(model, base, initial, list(new_tokens), options)
    strings = {row: new_tokens[token] for row, token in enumerate(sorted(new_tokens))}
    updates = RowUpdates(list(objective.rows.values()), strings, RowRates(shared=options.shared_rate))
    groups = updates.parameter_groups(options.learning_rate, 0.0)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    updates.attach(optimizer)
    order, batch = _order(len(snippets), options.epochs, options.seed), options.batch
    steps = [[snippets[number] for number in order[start : start + batch]] for start in range(0, len(order), batch)]
    losses = checkpoint.resume(objective, optimizer) if checkpoint else []
    resumed_from = len(losses) or None
    for loss in _train(objective, optimizer, steps, len(losses)):
        losses.append((len(losses) + 1, loss))
        if checkpoint is not None and len(losses) % CHECKPOINT_STEPS == 0 and len(losses) < len(steps):
            checkpoint.save(objective, optimizer, losses)
        if progress is not None:
            progress(len(losses), len(steps), loss)
    tokens = sum(len(snippet.ids) - 1 for step in steps for snippet in step)
    base_tokens = sum(len(snippet.base_ids) - 1 for step in steps for snippet in step) if options.hidden_weight else 0
    return FittedRows(objective.replace_rows(initial), losses, tokens, base_tokens, resumed_from)


def _train(
    objective: RowObjective, optimizer: "torch.optim.Optimizer", steps: Sequence[Sequence[Snippet]], first: int
) -> Iterator[float]:
    """Run the steps from `first` on; yields the loss of each."""
    import torch

    max_norms = {name: objective.max_kept_norm(name) for name in objective.rows}
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(first, len(steps)):
        factor = _schedule(step, len(steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        loss = objective(steps[step])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in objective.rows.items():
                parameter.copy_(parameter.renorm(2, 0, max_norms[name]))
        yield float(loss.detach())


def _pad(rows: Sequence[NDArray[np.int64]], device: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """Rows as int64 [batch, longest], padded with zeros, and a mask of the entries that are not padding."""
    import torch

    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row)
        mask[number, : len(row)] = True
    return ids.to(device), mask.to(device)


def _order(snippets: int, epochs: float, seed: int) -> NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    permutations = [generator.permutation(snippets) for _ in range(int(np.ceil(epochs)))]
    return np.concatenate(permutations)[: max(1, round(epochs * snippets))]


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, round(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return float(_FINAL + (1 - _FINAL) * 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))
