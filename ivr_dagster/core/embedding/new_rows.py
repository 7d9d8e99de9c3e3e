"""How optimizer steps update the rows of new tokens: at their own learning rate, and together with similar tokens.

New tokens are long, so their rows get few gradients: in 200 KB of Korean, each of 4,000 new tokens occurs nine times.
But new tokens share pieces, and what one row learns about a suffix applies to every row with that suffix. So rows also
move along their character n-grams, as fastText's vectors do (Bojanowski et al. 2017). The optimizer holds one vector
per n-gram beside the model, and a row moves by its own update plus 1/√n times the updates of its n n-grams. The n-gram
vectors are added to the rows and reset at every step; only the optimizer's moments of them persist.

The second moments of Adam can be floored at their mean over rows. Softmax pushes down the rows of all tokens that do
not occur, by tiny gradients that Adam normalizes to full steps; over the fifty steps between two occurrences of a token
this outweighs what the row learns from one. Coupled Adam (Stollenwerk and Stollenwerk 2025) replaces second moments by
their mean; a floor never makes a step larger than Adam's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ivr_dagster.core.tokens.byte_level import whole_text

if TYPE_CHECKING:
    import torch

MAX_NGRAM = 3
_START, _ANY = "\x02", ""
# keys of an optimizer's state: Adam's second moments, and their floor
_SECOND_MOMENTS, _FLOOR = "exp_avg_sq", "floor"


@dataclass(frozen=True)
class RowRates:
    """Learning rates of embedding rows, as factors of `learning_rate`.

    Attributes:
        kept: for rows of kept tokens, above 0.
        new: for rows of new tokens, by their own gradients.
        shared: for rows of new tokens, by the gradients of their n-grams; 0 disables n-grams.
        floored: whether Adam's second moments are floored at their mean over the rows of a matrix or over n-grams;
            applies to kept rows too.
    """

    kept: float = 1.0
    new: float = 1.0
    shared: float = 0.0
    floored: bool = False


def ngram_shares(strings: Sequence[str], max_ngram: int = MAX_NGRAM) -> tuple[list[tuple[int, int]], list[float], int]:
    """The sparse matrix S [tokens, n-grams] of the character n-grams that several new tokens share.

    A token has the n-grams of its text of 1 to `max_ngram` characters, with n-grams at the start distinct from others,
    and one n-gram common to all tokens. A string that is not valid UTF-8 has the n-grams of its bytes. N-grams of a
    single token are dropped. The entry of a token with n n-grams is 1/√n, so that its rows are equally long.

    Args:
        strings: byte-level strings of new tokens.
        max_ngram: characters of the longest n-grams.

    Returns:
        (row, column) of each entry, its value, and the number of columns.
    """
    owners: dict[tuple[bool, str], list[int]] = {}
    for row, string in enumerate(strings):
        text = _START + (whole_text(string) or string)
        ngrams = {
            (start == 0, text[start : start + length])
            for length in range(1, max_ngram + 1)
            for start in range(len(text) - length + 1)
        }
        for ngram in [*sorted(ngrams - {(True, _START)}), (False, _ANY)]:
            owners.setdefault(ngram, []).append(row)
    shared = [rows for rows in owners.values() if len(rows) > 1]
    counts = [0] * len(strings)
    for rows in shared:
        for row in rows:
            counts[row] += 1
    entries = [(row, column) for column, rows in enumerate(shared) for row in rows]
    return entries, [counts[row] ** -0.5 for row, _ in entries], len(shared)


def embedding_parameters(model: Any) -> "list[torch.nn.Parameter]":
    """Parameters with one row per token: input matrix, output matrix, output bias; a tied matrix only once."""
    head = model.get_output_embeddings()
    found = [model.get_input_embeddings().weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    return list({id(each): each for each in found if each is not None}.values())


class RowUpdates:
    """Updates of new tokens' rows in all embedding matrices of a model, applied by hooks around an optimizer's step.

    Works with any torch optimizer: the optimizer updates the matrices, then the hooks scale the change of new rows and
    add the change of their n-grams. N-gram vectors are parameters of the optimizer, so a checkpoint of its state
    resumes exactly.
    """

    def __init__(
        self, matrices: Sequence["torch.nn.Parameter"], new_tokens: Mapping[int, str], rates: RowRates
    ) -> None:
        """
        Args:
            matrices: `[V, d]`, or `[V]` for a bias; a tied matrix only once.
            new_tokens: id → byte-level string.
            rates: factors of the learning rate.
        """
        import torch

        ids = sorted(new_tokens)
        self._rates, self._matrices = rates, list(matrices)
        device = self._matrices[0].device
        self._ids = torch.tensor(ids, dtype=torch.long, device=device)
        self._shares: Any = None
        self._ngrams: list[torch.nn.Parameter | None] = [None] * len(self._matrices)
        entries, values, columns = ngram_shares([new_tokens[i] for i in ids]) if rates.shared else ([], [], 0)
        if columns:
            shares = torch.sparse_coo_tensor(
                torch.tensor(entries).T, torch.tensor(values), (len(ids), columns), check_invariants=True
            )
            self._shares = shares.coalesce().to(device)
            self._ngrams = [
                torch.nn.Parameter(torch.zeros(columns, each.shape[1], device=device)) if each.dim() == 2 else None
                for each in self._matrices
            ]

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer: matrices with weight decay, biases and n-grams without."""
        kept, shared = learning_rate * self._rates.kept, learning_rate * self._rates.shared
        groups: list[dict[str, Any]] = [
            {"params": [m for m in self._matrices if m.dim() == 2], "lr": kept, "weight_decay": weight_decay},
            {"params": [m for m in self._matrices if m.dim() != 2], "lr": kept, "weight_decay": 0.0},
            {"params": [m for m in self._ngrams if m is not None], "lr": shared, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def attach(self, optimizer: "torch.optim.Optimizer") -> None:
        """Register the hooks with an optimizer that was built from :meth:`parameter_groups`."""
        import torch

        before: list[torch.Tensor] = []
        floors: list[_Floor] = []
        ratio = self._rates.new / self._rates.kept
        parameters = {id(each) for each in (*self._matrices, *self._ngrams) if each is not None}

        @torch.no_grad()
        def begin_step(*_: Any) -> None:
            before[:] = [matrix[self._ids] for matrix in self._matrices]
            for matrix, ngrams in zip(self._matrices, self._ngrams, strict=True):
                if ngrams is not None and matrix.grad is not None:
                    ngrams.grad = torch.sparse.mm(self._shares.t(), matrix.grad[self._ids].to(ngrams.dtype))
                    ngrams.zero_()
            floors.clear()
            for group in optimizer.param_groups:
                if self._rates.floored and "betas" in group:
                    states = [optimizer.state[each] for each in group["params"] if id(each) in parameters]
                    floors.extend(_Floor(state, group["betas"][1]) for state in states if _SECOND_MOMENTS in state)

        @torch.no_grad()
        def end_step(*_: Any) -> None:
            for matrix, rows, ngrams in zip(self._matrices, before, self._ngrams, strict=True):
                moved = rows + ratio * (matrix[self._ids] - rows)
                if ngrams is not None and ngrams.grad is not None:
                    moved += torch.sparse.mm(self._shares, ngrams)
                    ngrams.grad = None
                matrix[self._ids] = moved
            before.clear()
            for floor in floors:
                floor.update()

        optimizer.register_step_pre_hook(begin_step)
        optimizer.register_step_post_hook(end_step)


class _Floor:
    """Floor [d] of Adam's second moments [rows, d] of one matrix, for one optimizer step.

    The floor is a running mean, with Adam's beta, of the mean squared gradient over rows. The squared gradient is
    derived from how the step changed the moments, so gradient scaling and steps that float16's loss scaler skips need
    no special case. It is part of the optimizer's state, so checkpoints include it. In its first step Adam has no
    moments yet.
    """

    def __init__(self, state: dict[str, Any], beta: float) -> None:
        import torch

        self._state, self._beta = state, beta
        squares = state[_SECOND_MOMENTS]
        state.setdefault(_FLOOR, squares.mean(dim=0))
        torch.maximum(squares, state[_FLOOR], out=squares)
        self._mean_before, self._step_before = squares.mean(dim=0), torch.as_tensor(state["step"]).clone()

    def update(self) -> None:
        """Update the running mean after the optimizer's step, unless the step was skipped."""
        import torch

        state = self._state
        added = (state[_SECOND_MOMENTS].mean(dim=0) - self._beta * self._mean_before).clamp_min(0.0)
        has_stepped = (torch.as_tensor(state["step"]) > self._step_before).to(added.device)
        state[_FLOOR] = torch.where(has_stepped, self._beta * state[_FLOOR] + added, state[_FLOOR])
