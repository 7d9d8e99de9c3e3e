"""Calibrates new rows, so that the model predicts each new token about as often as it occurs.

A mean of constituents' rows makes a new token about as probable as its constituents, whatever its own frequency.
Classifiers initialize the output bias with log frequencies; most language models have none, but a direction u with
h·u ≈ 1 for all hidden states h acts as a bias: adding a·u to a row adds a to its token's logits everywhere. u is the
ridge regression of 1 on the hidden states. It is short if they have a large common component, so that tied rows hardly
change as inputs (SmolLM2: norm 2.0, mean change 0.16).

With π the frequencies of new tokens, p their mean probabilities over text, and Π, P the sums of both, the biases a are
found by iterative scaling with all kept tokens as the fixed class:

    a ← a + log (π / (1 − Π)) − log (p / (1 − P))
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

# positions to average probabilities over, and the minimum per hidden dimension
POSITIONS, POSITIONS_PER_DIMENSION = 3_072, 4
# four iterations give the odds of new tokens to three digits
_ITERATIONS = 5
# relative to the mean squared hidden state entry
_RIDGE = 1e-3
# added to each count, so that a token missing from the text stays possible
_PSEUDO_COUNT = 0.5
_POSITIONS_PER_CHUNK = 512
# below this explained share of the constant 1, hidden states cannot carry a bias
MIN_EXPLAINED = 0.9


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration.

    Attributes:
        tensors: embedding tensors with new rows calibrated, all others bit for bit the same.
        explained: 1 − the mean squared error of h·u as an estimate of 1.
        tokens: tokens that the model read.
        is_applied: False if `explained` was below `MIN_EXPLAINED`, so that `tensors` are the ones given.
    """

    tensors: "Embeddings"
    explained: float
    tokens: int
    is_applied: bool


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

    Changes the output bias if there is one, else the output rows, which are also the input rows if tied.

    Args:
        model: the base model; moved to `device`, its embeddings are overwritten.
        tensors: embedding tensors by new id, [V, d], new rows initialized.
        new_ids: ids of new tokens, at least one.
        sequences: ids `[n]` of training documents under the remapped tokenizer. Frequencies are counted in all of
            them, probabilities averaged over the first tokens of some.
        eos_id: end-of-text id, put before every document.
        length: tokens read per document, at most the model's context.
        positions: approximate number of positions to average over; by default the larger of `POSITIONS` and
            `POSITIONS_PER_DIMENSION` · d.
        seed: selects the documents.
        device: cpu, cuda or mps.
        dtype: float32, or bfloat16 or float16 for mixed precision.
        progress: called with tokens read and tokens to read.

    Raises:
        InputError: no text.
    """
    import torch

    if not any(map(len, sequences)):
        raise InputError("no text to calibrate new rows on", where="calibration_bytes", remedy="Provide more text.")
    name = "lm_head" if "lm_head" in tensors else "wte"
    body: Any = model
    replace_embeddings(model, tensors)
    body.to(device).eval()
    positions = positions or max(POSITIONS, POSITIONS_PER_DIMENSION * tensors[name].shape[1])
    documents = _sample_beginnings(sequences, eos_id, length, positions, seed)
    hidden, scale = _hidden_states(body, documents, device, dtype, progress)
    direction, explained = _constant_direction(hidden)
    tokens = sum(map(len, documents))
    if explained < MIN_EXPLAINED and "lm_head_bias" not in tensors:
        return Calibration(tensors, explained, tokens, False)
    new = torch.tensor(sorted(new_ids), dtype=torch.long)
    bias = _fit_bias(hidden, tensors, name, new, sequences, scale)
    calibrated = {key: each.clone() for key, each in tensors.items()}
    if "lm_head_bias" in tensors:
        calibrated["lm_head_bias"][new] += bias.to(tensors[name].dtype)
    else:
        moved = tensors[name][new].float() + bias[:, None] * direction.cpu()
        calibrated[name][new] = moved.to(tensors[name].dtype)
    return Calibration(calibrated, explained, tokens, True)


def _fit_bias(
    hidden: "torch.Tensor",
    tensors: "Embeddings",
    name: str,
    new: "torch.Tensor",
    sequences: Sequence[NDArray[np.integer[Any]]],
    scale: float,
) -> "torch.Tensor":
    """Iterative scaling: float32 [new], what to add to the new tokens' biases, on the CPU."""
    import torch

    rows = tensors[name].to(hidden.device, torch.float32) * scale
    counts = np.zeros(len(rows))
    for ids in sequences:
        counts += np.bincount(ids.astype(np.int64), minlength=len(rows))
    wanted = torch.from_numpy(counts[new.numpy()] + _PSEUDO_COUNT).to(hidden.device)
    wanted_odds = (wanted / (counts.sum() - counts[new.numpy()].sum() + _PSEUDO_COUNT)).log()
    bias = torch.zeros(len(rows), device=hidden.device)
    if "lm_head_bias" in tensors:
        bias += tensors["lm_head_bias"].to(hidden.device, torch.float32) * scale
    added, new = torch.zeros_like(wanted), new.to(hidden.device)
    for _ in range(_ITERATIONS):
        found = torch.zeros(len(rows), dtype=torch.float64, device=hidden.device)
        for states in hidden.split(_POSITIONS_PER_CHUNK):
            found += torch.softmax(states @ rows.T + bias, dim=-1).sum(dim=0)
        found = found.clamp_min(torch.finfo(torch.float32).tiny)
        step = wanted_odds - (found[new] / (found.sum() - found[new].sum())).log()
        bias[new] += step.to(bias.dtype)
        added += step
    return (added / scale).float().cpu()


def _sample_beginnings(
    sequences: Sequence[NDArray[np.integer[Any]]], eos_id: int, length: int, positions: int, seed: int
) -> list[NDArray[np.int64]]:
    """First `length` tokens of random documents, end-of-text token included, until there are `positions` tokens."""
    sampled, total = [], 0
    for number in np.random.default_rng(seed).permutation(len(sequences)):
        if total >= positions:
            break
        sampled.append(np.concatenate([[eos_id], sequences[number]]).astype(np.int64)[:length])
        total += len(sampled[-1])
    return sampled


def _hidden_states(
    model: Any,
    documents: Sequence[NDArray[np.int64]],
    device: str,
    dtype: str,
    progress: Callable[[int, int], None] | None,
) -> "tuple[torch.Tensor, float]":
    """Inputs of the output matrix, float32 [positions, d], and the factor from its products to logits.

    Most models have factor 1. Some scale logits; for models that cap logits, the factor is the least-squares slope.
    """
    import torch

    states, total = [], sum(map(len, documents))
    head, numerator, denominator, read = model.get_output_embeddings(), 0.0, 0.0, 0
    for ids in documents:
        with torch.no_grad(), torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            output = model(
                input_ids=torch.from_numpy(ids)[None].to(device),
                output_hidden_states=True,
                use_cache=False,
                logits_to_keep=1,
            )
            product = head(output.hidden_states[-1][:, -1:]).float()
        states.append(output.hidden_states[-1][0].float())
        numerator += float((product * output.logits[:, -1:].float()).sum())
        denominator += float(product.square().sum())
        read += len(ids)
        if progress is not None:
            progress(read, total)
    return torch.cat(states), numerator / denominator


def _constant_direction(hidden: "torch.Tensor") -> "tuple[torch.Tensor, float]":
    """u [d] with h·u ≈ 1 and mean exactly 1, and the share of the constant 1 explained before that scaling."""
    import torch

    moments = hidden.T @ hidden / len(hidden)
    moments += _RIDGE * hidden.square().mean() * torch.eye(len(moments), device=hidden.device)
    direction: torch.Tensor = torch.linalg.solve(moments, hidden.mean(dim=0))
    products = hidden @ direction
    return direction / products.mean(), float(1 - (products - 1).square().mean())
