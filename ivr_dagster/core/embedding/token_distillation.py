"""Token distillation: rows of new tokens fitted, all else frozen, to what the base model makes of their constituents.

After Dobler, Elliott and de Melo (Token Distillation, 2025). The frozen model reads snippets of the corpus twice: as
the base tokenizer wrote them, the constituents in place of every new token, and with the new tokens' own rows. Where
a token ends, the two should have the same hidden state. That fits rows as inputs. Where the output matrix is the same
(tied), or has rows to fit too, there is no state to match; there a row is to give the snippet's own next token its
likelihood. Both are one loss

    hidden_weight · mean over positions of ‖h − h'‖² / ‖h'‖²  +  mean over positions of −log p(next token)

with h' the base model's last hidden state, after the final norm, at the last constituent.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.embedding.new_rows import NewRows, RowRates
from ivr_dagster.errors import InputError
from ivr_dagster.storage.atomic import atomic_write

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ivr_dagster.core.embedding.extract import Embeddings

# share of the steps in which the learning rate rises, and what is left of it at the end
_WARMUP, _LAST = 0.1, 0.1
# about half a minute of a small model's steps on a CPU
CHECKPOINT_STEPS = 20


@dataclass(frozen=True)
class Snippet:
    """A stretch of a document: its ids under the remapped tokenizer, `[n]`, and the same text in base ids, `[m]`.

    Attributes:
        ids: int64 `[n]`, the end-of-text token first.
        base_ids: int64 `[m]`, constituents in place of new tokens.
        ends: int64 `[n]`, where in `base_ids` each token's last constituent stands.
    """

    ids: NDArray[np.int64]
    base_ids: NDArray[np.int64]
    ends: NDArray[np.int64]


def cut_snippets(
    sequences: Sequence[Sequence[int]], constituents: Mapping[int, Sequence[int]], *, eos_id: int, length: int
) -> Iterator[Snippet]:
    """Documents as snippets of at most `length` base tokens, each with an end-of-text token before it.

    Args:
        sequences: ids of documents under the remapped tokenizer.
        constituents: base ids by id of each new token; all other ids are the base's own.
        eos_id: of the end-of-text token, a kept one.
        length: base tokens of a snippet; a token of more constituents has a snippet of its own, longer than that.
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


class RowObjective:
    """The loss of new rows on snippets, and through it their gradient; the model itself never learns."""

    def __init__(
        self,
        model: "PreTrainedModel",
        base: "Embeddings",
        initial: "Embeddings",
        new_ids: Sequence[int],
        *,
        hidden_weight: float,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """
        Args:
            model: the base model, for its body; on the CPU.
            base: embedding tensors by base id, [V', d].
            initial: the same by new id, new rows initialized.
            new_ids: ids of the new tokens.
            hidden_weight: of the hidden states' distance in the loss; 0 saves the base model's reading.
            device: cpu, cuda or mps.
            dtype: float32 or float64; or bfloat16 or float16 for matrix products in mixed precision.
        """
        import torch

        products: torch.dtype = getattr(torch, dtype)
        mixed = products in (torch.bfloat16, torch.float16)
        self._device, self._hidden_weight = device, hidden_weight
        self._precision = torch.float32 if mixed else products
        self._products = products if mixed else None
        body: Any = model
        self.model: Any = body.to(device, self._precision).eval().requires_grad_(False)
        self._base = base["wte"].to(device, self._precision)
        self._matrices = {name: rows.to(device, self._precision) for name, rows in initial.items()}
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
        """The loss on a batch, nats per token for the likelihood."""
        import torch

        ids, real = _padded([snippet.ids for snippet in snippets], self._device)
        output = self._read(ids, {name: self._matrix(name) for name in self.rows}, hidden=self._hidden_weight > 0)
        predicted = output.logits[:, :-1][real[:, 1:]].to(self._precision)
        loss = torch.nn.functional.cross_entropy(predicted, ids[:, 1:][real[:, 1:]])
        if self._hidden_weight:
            got, wanted = (
                each.to(self._precision)[:, 1:][real[:, 1:]]
                for each in (output.hidden_states[-1], self._teacher(snippets))
            )
            distance = (got - wanted).square().sum(-1) / wanted.square().sum(-1)
            loss = loss + self._hidden_weight * distance.mean()
        return loss

    def longest_kept(self, name: str) -> float:
        """The greatest norm among the rows of kept tokens."""
        import torch

        matrix = self._matrices[name]
        kept = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
        kept[self._new] = False
        return float(matrix[kept].norm(dim=1).max())

    def _arithmetic(self) -> AbstractContextManager[Any]:
        import torch

        if self._products is None:
            return nullcontext()
        autocast: AbstractContextManager[Any] = torch.autocast(self._device.split(":")[0], self._products)
        return autocast

    def _matrix(self, name: str) -> "torch.Tensor":
        return self._matrices[name].index_copy(0, self._new, self.rows[name])

    def _read(self, ids: "torch.Tensor", matrices: "Embeddings", *, hidden: bool, **options: Any) -> Any:
        """The model's own output with other embeddings: whatever it scales or caps is in it."""
        import torch

        parameters = {self._names[name]: rows for name, rows in matrices.items()}
        inputs = {"input_ids": ids, "use_cache": False, "output_hidden_states": hidden, **options}
        with self._arithmetic():
            return torch.func.functional_call(self.model, parameters, args=(), kwargs=inputs)

    def _teacher(self, snippets: Sequence[Snippet]) -> "torch.Tensor":
        """The base model's hidden states where tokens end, [batch, n, d]."""
        import torch

        ids, _ = _padded([snippet.base_ids for snippet in snippets], self._device)
        ends, _ = _padded([snippet.ends for snippet in snippets], self._device)
        with torch.no_grad():
            output = self._read(ids, {"wte": self._base}, hidden=True, logits_to_keep=1)
        hidden: torch.Tensor = output.hidden_states[-1]
        return hidden.gather(1, ends[:, :, None].expand(-1, -1, hidden.shape[2]))


def _padded(rows: Sequence[NDArray[np.int64]], device: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """int64 [batch, longest], zeros behind shorter rows, and where the rows are."""
    import torch

    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    real = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row)
        real[number, : len(row)] = True
    return ids.to(device), real.to(device)


@dataclass(frozen=True)
class FittedRows:
    """What the fit came to.

    Attributes:
        tensors: the embedding tensors, new rows fitted, all others bitwise as given; dtypes as given.
        losses: (step, the objective on the step's snippets).
        tokens: tokens read under the remapped tokenizer, end-of-text tokens left out.
        base_tokens: tokens that the base model read for the hidden states; 0 without them.
        resumed_from: the step a stopped fit was gone on with from, or None.
    """

    tensors: "Embeddings"
    losses: list[tuple[int, float]]
    tokens: int
    base_tokens: int
    resumed_from: int | None


def fit_new_rows(
    model: "PreTrainedModel",
    base: "Embeddings",
    initial: "Embeddings",
    new_tokens: Mapping[int, str],
    snippets: Sequence[Snippet],
    *,
    epochs: float = 1.0,
    batch: int = 4,
    learning_rate: float = 3e-3,
    shared_rate: float = 1.0,
    hidden_weight: float = 1.0,
    seed: int = 42,
    device: str = "cpu",
    dtype: str = "float32",
    checkpoint: Path | None = None,
    run: str = "",
    progress: Callable[[int, int, float], None] | None = None,
) -> FittedRows:
    """Fit the rows of new tokens to snippets, by AdamW, all else frozen.

    A row whose norm outgrows the longest of the kept rows is shortened to it after every step. The learning rate rises
    over a tenth of the steps and falls by a cosine to a tenth of itself. Stopped at any moment, the same call goes on
    from `checkpoint`, and ends on the CPU with the same bits.

    Args:
        model: the base model; its weights are not changed, but put to float32 and `device`.
        base: its embedding tensors by base id, [V', d].
        initial: the same by new id, new rows initialized.
        new_tokens: byte-level string by id.
        snippets: of the train split.
        epochs: how often the snippets are read.
        batch: snippets a step.
        learning_rate: of a row by its own gradient.
        shared_rate: factor of it for the n-grams that new tokens share, see :mod:`.new_rows`.
        hidden_weight: of the hidden states' distance against the likelihood.
        seed: of the snippets' order.
        device: cpu, cuda or mps.
        dtype: float32, or bfloat16 for mixed precision.
        checkpoint: a safetensors file that is written as the fit goes on, and is read to go on with.
        run: identifies the fit; a checkpoint of another is left unread and overwritten.
        progress: called after every step with steps done, steps in all, and the loss.

    Raises:
        InputError: no snippets.
    """
    import torch

    if not snippets:
        raise InputError("no text to fit new rows on", where="token_distillation_bytes", remedy="Take more text.")
    objective = RowObjective(
        model, base, initial, list(new_tokens), hidden_weight=hidden_weight, device=device, dtype=dtype
    )
    names = {number: new_tokens[token] for number, token in enumerate(sorted(new_tokens))}
    rows = NewRows(list(objective.rows.values()), names, RowRates(shared=shared_rate))
    optimizer = torch.optim.AdamW(
        rows.parameter_groups(learning_rate, 0.0), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    rows.attach(optimizer)
    ceilings = {name: objective.longest_kept(name) for name in objective.rows}
    order = _order(len(snippets), epochs, seed)
    steps = [order[start : start + batch] for start in range(0, len(order), batch)]
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = _resume(checkpoint, run, objective, optimizer) if checkpoint else []
    resumed_from = len(losses) or None
    for step in range(len(losses), len(steps)):
        factor = _schedule(step, len(steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        loss = objective([snippets[number] for number in steps[step]])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in objective.rows.items():
                parameter.copy_(parameter.renorm(2, 0, ceilings[name]))
        losses.append((step + 1, float(loss.detach())))
        if checkpoint is not None and (step + 1) % CHECKPOINT_STEPS == 0 and step + 1 < len(steps):
            _save(checkpoint, run, objective, optimizer, losses)
        if progress is not None:
            progress(step + 1, len(steps), losses[-1][1])
    tensors = {name: matrix.clone() for name, matrix in initial.items()}
    new = torch.tensor(sorted(new_tokens), dtype=torch.long)
    for name, parameter in objective.rows.items():
        tensors[name][new] = parameter.detach().cpu().to(tensors[name].dtype)
    read = [snippets[number] for number in order]
    return FittedRows(
        tensors,
        losses,
        sum(len(snippet.ids) - 1 for snippet in read),
        sum(len(snippet.base_ids) - 1 for snippet in read) if hidden_weight else 0,
        resumed_from,
    )


def _order(snippets: int, epochs: float, seed: int) -> NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    rounds = [generator.permutation(snippets) for _ in range(int(np.ceil(epochs)))]
    return np.concatenate(rounds)[: max(1, round(epochs * snippets))]


def _schedule(step: int, steps: int) -> float:
    warm = max(1, round(_WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return float(_LAST + (1 - _LAST) * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _save(
    checkpoint: Path,
    run: str,
    objective: RowObjective,
    optimizer: "torch.optim.Optimizer",
    losses: list[tuple[int, float]],
) -> None:
    from safetensors.torch import save_file

    tensors = {f"rows.{name}": rows.detach() for name, rows in objective.rows.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"state.{number}.{key}": value for key, value in state.items()}
    with atomic_write(checkpoint) as staged:
        save_file(tensors, staged, metadata={"run": run, "losses": json.dumps(losses)})


def _resume(
    checkpoint: Path, run: str, objective: RowObjective, optimizer: "torch.optim.Optimizer"
) -> list[tuple[int, float]]:
    """Put rows and optimizer to where the checkpoint was; the losses until then, none where it is of no use."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("run") != run:
                return []
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
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
