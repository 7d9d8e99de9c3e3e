"""New rows calibrated: each new token is as probable, over text, as it is frequent there.

The mean of its constituents' rows makes a new token about as probable as its constituents, which says nothing of how
often all of them stand together. A classifier's output bias is therefore begun at the classes' log frequencies; most
models have none, but a direction u in which all hidden states are nearly alike, h·u ≈ 1, does a bias's work: a row
moved by a·u raises its token's logit by a wherever it is. With π the frequencies of new tokens, p their mean
probability over positions of text, Π and P the sums of both, the biases are found by

    a ← a + log (π / (1 − Π)) − log (p / (1 − P)),

which is iterative scaling with the kept tokens together as the class that stays as it is, and u by ridge regression
of 1 on the hidden states. u is short where these have a large common part, so that rows hardly change as inputs:
SmolLM2's are 2.0 long and move by 0.16 in the mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.embedding.extract import replace_embeddings
from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ivr_dagster.core.embedding.extract import Embeddings

# positions of text that probabilities are averaged over, and how many there are at least for each column of u
POSITIONS, POSITIONS_BY_COLUMN = 3_072, 4
# iterations; the odds of new tokens are right to three digits after four, however much of the text they make up
_ROUNDS = 5
# of the mean squared entry of a hidden state, what is added to the diagonal in finding u
_RIDGE = 1e-3
# what a new token counts beside its occurrences, so that one that the text lacks stays possible
_UNSEEN = 0.5
# positions whose logits are in memory at once
_AT_ONCE = 512
# the least that u must explain of the constant 1; hidden states without a common part cannot carry a bias
LEAST_EXPLAINED = 0.9


@dataclass(frozen=True)
class Calibration:
    """What calibrating came to.

    Attributes:
        tensors: the embedding tensors, new rows calibrated, all others bit for bit; as given where they could not be.
        explained: 1 − the mean squared error of h·u as an estimate of 1. Below `LEAST_EXPLAINED` rows were left alone.
        read: tokens that the model read.
    """

    tensors: "Embeddings"
    explained: float
    read: int


def calibrate_new_rows(
    model: "PreTrainedModel",
    tensors: "Embeddings",
    new_ids: Sequence[int],
    sequences: Sequence[NDArray[np.integer[Any]]],
    *,
    eos_id: int,
    length: int,
    positions: int | None = None,
    seed: int = 42,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Calibrate the rows of new tokens in `tensors` to the tokens' frequencies.

    Where the output has a bias, that is moved and no row is; else, where input and output rows are the same (tied),
    these are, and where they are not those of the output.

    Args:
        model: the base model, for its body; put to `device`, its embeddings are overwritten.
        tensors: embedding tensors by new id, [V, d], new rows initialized.
        new_ids: ids of the new tokens.
        sequences: documents of the train split under the remapped tokenizer, ids `[n]`; frequencies are counted in
            all of them, probabilities averaged over the beginnings of some.
        eos_id: of the end-of-text token, put before every document.
        length: tokens of a document that are read, at most what the model reads at once.
        positions: how many are averaged over, about; `POSITIONS`, or `POSITIONS_BY_COLUMN` · d if that is more.
        seed: of the choice of documents.
        device: cpu, cuda or mps.
        dtype: float32, or bfloat16 or float16 for matrix products in mixed precision.
        progress: called with tokens read and tokens to read.

    Raises:
        InputError: there is no text.
    """
    import torch

    if not any(map(len, sequences)):
        raise InputError("no text to calibrate new rows on", where="calibration_bytes", remedy="Take more text.")
    if not len(new_ids):
        return Calibration(tensors, 0.0, 0)
    name = "lm_head" if "lm_head" in tensors else "wte"
    matrix, biased = tensors[name], "lm_head_bias" in tensors
    body: Any = model
    replace_embeddings(model, tensors)
    body.to(device).eval()
    positions = positions or max(POSITIONS, POSITIONS_BY_COLUMN * matrix.shape[1])
    documents = _beginnings(sequences, eos_id, length, positions, seed)
    hidden, scale = _hidden_states(body, documents, device, dtype, progress)
    direction, explained = _constant_direction(hidden)
    read = sum(map(len, documents))
    if explained < LEAST_EXPLAINED and not biased:
        return Calibration(tensors, explained, read)

    new = torch.tensor(sorted(new_ids), dtype=torch.long)
    counts = np.zeros(len(matrix))
    for ids in sequences:
        counts += np.bincount(ids.astype(np.int64), minlength=len(matrix))
    wanted = torch.from_numpy(counts[new.numpy()] + _UNSEEN).to(device)
    wanted_odds = (wanted / (counts.sum() - counts[new.numpy()].sum() + _UNSEEN)).log()
    rows = matrix.to(device, torch.float32) * scale
    bias = torch.zeros(len(matrix), device=device)
    if biased:
        bias += tensors["lm_head_bias"].to(device, torch.float32) * scale
    gained, on_device = torch.zeros_like(wanted), new.to(device)
    for _ in range(_ROUNDS):
        found = torch.zeros(len(matrix), dtype=torch.float64, device=device)
        for states in hidden.split(_AT_ONCE):
            found += torch.softmax(states @ rows.T + bias, dim=-1).sum(dim=0)
        found = found.clamp_min(torch.finfo(torch.float32).tiny)
        kept = found.sum() - found[on_device].sum()
        step = wanted_odds - (found[on_device] / kept).log()
        bias[on_device] += step.to(bias.dtype)
        gained += step
    gained = (gained / scale).float().cpu()
    moved = {key: each.clone() for key, each in tensors.items()}
    if biased:
        moved["lm_head_bias"][new] += gained.to(matrix.dtype)
    else:
        moved[name][new] = (matrix[new].float() + gained[:, None] * direction.cpu()).to(matrix.dtype)
    return Calibration(moved, explained, read)


def _beginnings(
    sequences: Sequence[NDArray[np.integer[Any]]], eos_id: int, length: int, positions: int, seed: int
) -> list[NDArray[np.int64]]:
    """Beginnings of documents drawn without return, with the end-of-text token before them, `positions` or few more."""
    chosen, total = [], 0
    for number in np.random.default_rng(seed).permutation(len(sequences)):
        if total >= positions:
            break
        chosen.append(np.concatenate([[eos_id], sequences[number]]).astype(np.int64)[:length])
        total += len(chosen[-1])
    return chosen


def _hidden_states(
    model: Any,
    documents: Sequence[NDArray[np.int64]],
    device: str,
    dtype: str,
    progress: Callable[[int, int], None] | None,
) -> "tuple[torch.Tensor, float]":
    """What the output matrix is multiplied with, float32 [positions, d], and how many times the product a logit is.

    The factor is 1 for most models; some scale their logits, and some bend them, whose slope it is.
    """
    import torch

    states, total = [], sum(map(len, documents))
    head, above, below, read = model.get_output_embeddings(), 0.0, 0.0, 0
    for ids in documents:
        with torch.no_grad(), torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            output = model(
                input_ids=torch.from_numpy(ids)[None].to(device),
                output_hidden_states=True,
                use_cache=False,
                logits_to_keep=1,
            )
            product = head(output.hidden_states[-1][:, -1:])
        states.append(output.hidden_states[-1][0].float())
        above += float((product.float() * output.logits[:, -1:].float()).sum())
        below += float(product.float().square().sum())
        read += len(ids)
        if progress is not None:
            progress(read, total)
    return torch.cat(states), above / below


def _constant_direction(hidden: "torch.Tensor") -> "tuple[torch.Tensor, float]":
    """u [d] with h·u as near to 1 as it gets, and 1 in the mean; what it explains of 1 before that."""
    import torch

    moments = hidden.T @ hidden / len(hidden)
    moments += _RIDGE * hidden.square().mean() * torch.eye(len(moments), device=hidden.device)
    direction: torch.Tensor = torch.linalg.solve(moments, hidden.mean(dim=0))
    products = hidden @ direction
    return direction / products.mean(), float(1 - (products - 1).square().mean())
