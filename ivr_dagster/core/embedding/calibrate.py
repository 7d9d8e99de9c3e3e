"""New rows calibrated: each new token is as probable, over text, as it is frequent there.

The mean of its constituents' rows makes a new token about as probable as its constituents, which says nothing of how
often all of them stand together. A classifier's output bias is therefore begun at the classes' log frequencies; models
of transformers have none, but a direction u in which all hidden states are nearly alike, h·u ≈ 1, does a bias's work:
a row moved by a·u raises its token's logit by a wherever it is. With π the frequencies of new tokens and p their mean
probability over positions of text, the biases are found by iterative scaling,

    a ← a + log π − log p(a),

and u by ridge regression of 1 on the hidden states. u is short where hidden states have a large common part, so that
rows hardly change as inputs: SmolLM2's are 2.0 long, and move by 0.16 in the mean.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.embedding.extract import replace_embeddings
from ivr_dagster.core.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ivr_dagster.core.embedding.extract import Embeddings

# positions of text that probabilities are averaged over: four times as many change held-out BPB by less than 0.003
POSITIONS = 3_072
# iterations; after one the mean |log π − log p| has fallen from 1.1 to 0.15, after four to 0.07
_ROUNDS = 6
# of the mean squared entry of a hidden state, what is added to the diagonal in finding u
_RIDGE = 1e-3
# what every new token counts beside its occurrences, so that one that the text lacks stays possible
_UNSEEN = 0.5
# positions whose logits are in memory at once
_AT_ONCE = 512


def calibrate_new_rows(
    model: "PreTrainedModel",
    tensors: "Embeddings",
    new_ids: Sequence[int],
    sequences: Sequence[NDArray[np.integer[Any]]],
    *,
    eos_id: int,
    length: int,
    positions: int = POSITIONS,
    seed: int = 42,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> "Embeddings":
    """`tensors` with the rows of new tokens calibrated to the tokens' frequencies; all other rows bit for bit.

    Where input and output rows are the same (tied), these are moved; else those of the output alone.

    Args:
        model: the base model, for its body; put to `device`, its embeddings are overwritten.
        tensors: embedding tensors by new id, [V, d], new rows initialised.
        new_ids: ids of the new tokens.
        sequences: documents of the train split under the remapped tokenizer, ids `[n]`; frequencies are counted in
            all of them, probabilities averaged over the beginnings of some.
        eos_id: of the end-of-text token, put before every document.
        length: tokens of a document that are read, at most what the model reads at once.
        positions: how many are averaged over, about.
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
    head = "lm_head" if "lm_head" in tensors else "wte"
    matrix = tensors[head]
    out = {name: rows.clone() for name, rows in tensors.items()}
    if not len(new_ids):
        return out
    body: Any = model
    replace_embeddings(model, tensors)
    body.to(device).eval()
    hidden, scale = _hidden_states(
        body, _beginnings(sequences, eos_id, length, positions, seed), device, dtype, progress
    )
    new = torch.tensor(sorted(new_ids), dtype=torch.long)
    counts = np.bincount(np.concatenate([each for each in sequences if len(each)]), minlength=len(matrix))
    wanted = torch.from_numpy((counts + _UNSEEN) / (counts + _UNSEEN).sum()).to(device, torch.float32)
    rows = matrix.to(device, torch.float32) * scale
    bias = torch.zeros(len(matrix), device=device)
    if "lm_head_bias" in tensors:
        bias += tensors["lm_head_bias"].to(device, torch.float32)
    given = bias.clone()
    on_device = new.to(device)
    for _ in range(_ROUNDS):
        found = torch.zeros_like(bias)
        for states in hidden.split(_AT_ONCE):
            found += torch.softmax(states @ rows.T + bias, dim=-1).sum(dim=0) / len(hidden)
        step = (wanted / found.clamp_min(torch.finfo(found.dtype).tiny)).log()
        bias[on_device] += step[on_device]
    gained = (bias - given)[on_device].cpu()
    if "lm_head_bias" in tensors:
        out["lm_head_bias"][new] += gained.to(out["lm_head_bias"].dtype)
    else:
        moved = matrix[new].float() + gained[:, None] * _constant_direction(hidden).cpu() / scale
        out[head][new] = moved.to(matrix.dtype)
    return out


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
        above += float((product.float() * output.logits.float()).sum())
        below += float(product.float().square().sum())
        read += len(ids)
        if progress is not None:
            progress(read, total)
    return torch.cat(states), above / below


def _constant_direction(hidden: "torch.Tensor") -> "torch.Tensor":
    """u [d] with h·u as near to 1 as it gets, and 1 in the mean."""
    import torch

    moments = hidden.T @ hidden / len(hidden)
    moments += _RIDGE * hidden.square().mean() * torch.eye(len(moments), device=hidden.device)
    direction: torch.Tensor = torch.linalg.solve(moments, hidden.mean(dim=0))
    direction /= (hidden @ direction).mean()
    return direction
