"""How the rows of new tokens learn: at a rate of their own, and from each other.

A new token's row sees few gradients, since the token was made to be long: on 200 KB of Korean, 4,000 new tokens occur
nine times each. But new tokens are made of the same pieces: what one row learns of a suffix, all rows that end in it
could use. So the rows move together along their character n-grams, as fastText's vectors do (Bojanowski et al. 2017):
the optimizer holds one vector for each n-gram beside the model, and a row moves by what it learns itself plus the
mean, over √n, of what its n-grams learn. Nothing of that stays in the model: the n-gram vectors are differences of
one step, added to the rows and forgotten; only the optimizer's moments are kept.

And rows keep still where they learn nothing. Softmax pushes the rows of all tokens that do not occur down, by next to
nothing; Adam divides by the size of a row's own gradients and makes full steps of it. Over the fifty steps between two
occurrences that outweighs what is learned of one. Coupled Adam (Stollenwerk and Stollenwerk 2025) gives all rows the
mean of their second moments; here the mean is only a floor, so that no step is larger than Adam's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ivr_dagster.core.tokens.byte_level import whole_text

if TYPE_CHECKING:
    import torch

LONGEST_NGRAM = 3
_START, _ANY = "\x02", ""
# of an optimizer's state: torch's name for Adam's second moments, and ours for what they are raised to
_SECOND_MOMENTS, _FLOOR = "exp_avg_sq", "floor"


@dataclass(frozen=True)
class RowRates:
    """Learning rates of embedding rows, as factors of `learning_rate`.

    Attributes:
        kept: rows of kept tokens, above 0.
        new: rows of new tokens, each by its own gradient.
        shared: rows of new tokens, by the gradient of their n-grams; 0 for none.
        floored: whether the second moments of Adam, of the rows of a matrix and of the n-grams, are at least as large
            as their mean over the rows; kept rows too.
    """

    kept: float = 1.0
    new: float = 1.0
    shared: float = 0.0
    floored: bool = False


def ngram_shares(
    strings: Sequence[str], longest: int = LONGEST_NGRAM
) -> tuple[list[tuple[int, int]], list[float], int]:
    """Which n-grams of characters new tokens have in common, as a sparse matrix S [N, n-grams].

    A token's n-grams are those of its text, 1 to `longest` characters, those at its beginning told apart, and one
    that all tokens have. A string that is no whole UTF-8 text has those of its bytes. N-grams of a single token are
    left out, since its own row is there for them. An entry is 1/√n for a token of n n-grams, so that a row moves as
    far whether its token is long or short, while its n-grams move independently.

    Args:
        strings: the new tokens' byte-level strings.
        longest: characters of the longest n-grams.

    Returns:
        (row, column) of the entries, their values, and how many columns there are.
    """
    owners: dict[tuple[bool, str], list[int]] = {}
    for row, string in enumerate(strings):
        text = _START + (whole_text(string) or string)
        found = {
            (start == 0, text[start : start + length])
            for length in range(1, longest + 1)
            for start in range(len(text) - length + 1)
        }
        for ngram in [*sorted(found - {(True, _START)}), (False, _ANY)]:
            owners.setdefault(ngram, []).append(row)
    shared = [rows for rows in owners.values() if len(rows) > 1]
    of_row = [0] * len(strings)
    for rows in shared:
        for row in rows:
            of_row[row] += 1
    places = [(row, column) for column, rows in enumerate(shared) for row in rows]
    return places, [of_row[row] ** -0.5 for row, _ in places], len(shared)


def embedding_parameters(model: Any) -> "list[torch.nn.Parameter]":
    """What has a row for each token: input matrix, output matrix, the output's bias; a tied matrix stands here once."""
    head = model.get_output_embeddings()
    found = [model.get_input_embeddings().weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    return list({id(each): each for each in found if each is not None}.values())


class NewRows:
    """The movement of new tokens' rows in every embedding matrix of a model, tied to an optimizer by hooks.

    Works with any optimizer of torch: it is left to move the matrices as it does, and a row's movement is then scaled
    and added to. The n-gram vectors are parameters of the optimizer, so its state holds their moments, and a run that
    goes on from a checkpoint is the same run.
    """

    def __init__(
        self, matrices: Sequence["torch.nn.Parameter"], new_tokens: Mapping[int, str], rates: RowRates
    ) -> None:
        """
        Args:
            matrices: `[V, d]`, or `[V]` for a bias; a tied one stands here once.
            new_tokens: byte-level string by id.
            rates: factors of the learning rate.
        """
        import torch

        ids = sorted(new_tokens)
        self._rates, self._matrices = rates, list(matrices)
        device = self._matrices[0].device
        self._ids = torch.tensor(ids, dtype=torch.long, device=device)
        self._shares: Any = None
        self._ngrams: list[torch.nn.Parameter | None] = [None] * len(self._matrices)
        if rates.shared and ids:
            places, values, columns = ngram_shares([new_tokens[i] for i in ids])
            if columns:
                self._shares = (
                    torch.sparse_coo_tensor(
                        torch.tensor(places).T, torch.tensor(values), (len(ids), columns), check_invariants=True
                    )
                    .coalesce()
                    .to(device)
                )
                self._ngrams = [
                    torch.nn.Parameter(torch.zeros(columns, matrix.shape[1], device=device))
                    if matrix.dim() == 2
                    else None
                    for matrix in self._matrices
                ]

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for the optimizer: the matrices with their weight decay, biases and n-grams without."""
        matrices = [each for each in self._matrices if each.dim() == 2]
        others = [each for each in self._matrices if each.dim() != 2]
        ngrams = [each for each in self._ngrams if each is not None]
        kept, shared = learning_rate * self._rates.kept, learning_rate * self._rates.shared
        groups: list[dict[str, Any]] = [
            {"params": matrices, "lr": kept, "weight_decay": weight_decay},
            {"params": others, "lr": kept, "weight_decay": 0.0},
            {"params": ngrams, "lr": shared, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def attach(self, optimizer: "torch.optim.Optimizer") -> None:
        """Have the optimizer's steps move new rows as they should."""
        import torch

        before: list[torch.Tensor] = []
        floors: list[_Floor] = []
        ratio = self._rates.new / self._rates.kept
        learners = {id(each) for each in (*self._matrices, *self._ngrams) if each is not None}

        @torch.no_grad()
        def begin(*_: Any) -> None:
            before[:] = [matrix[self._ids] for matrix in self._matrices]
            for matrix, ngrams in zip(self._matrices, self._ngrams, strict=True):
                if ngrams is not None and matrix.grad is not None:
                    ngrams.grad = torch.sparse.mm(self._shares.t(), matrix.grad[self._ids].to(ngrams.dtype))
                    ngrams.zero_()
            floors[:] = []
            for group in optimizer.param_groups:
                if not self._rates.floored or "betas" not in group:
                    continue
                states = [optimizer.state[each] for each in group["params"] if id(each) in learners]
                floors.extend(_Floor(state, group["betas"][1]) for state in states if _SECOND_MOMENTS in state)

        @torch.no_grad()
        def end(*_: Any) -> None:
            for matrix, rows, ngrams in zip(self._matrices, before, self._ngrams, strict=True):
                moved = rows + ratio * (matrix[self._ids] - rows)
                if ngrams is not None and ngrams.grad is not None:
                    moved += torch.sparse.mm(self._shares, ngrams)
                    ngrams.grad = None
                matrix[self._ids] = moved
            before.clear()
            for floor in floors:
                floor.follow()

        optimizer.register_step_pre_hook(begin)
        optimizer.register_step_post_hook(end)


class _Floor:
    """What Adam's second moments [rows, d] of one matrix are raised to [d], for one step of the optimizer.

    It is the running mean, as Adam's own, of the mean over rows of squared gradients. How large these were is seen in
    what the step made of the moments, so that it does not matter how gradients were scaled, or whether there was a
    step at all: float16's loss scaler leaves those with infinite gradients out. The floor is a part of the
    optimizer's state, so a checkpoint holds it. At its first step Adam has no moments yet to raise.
    """

    def __init__(self, state: dict[str, Any], beta: float) -> None:
        import torch

        self._state, self._beta = state, beta
        squares = state[_SECOND_MOMENTS]
        state.setdefault(_FLOOR, squares.mean(dim=0))
        torch.maximum(squares, state[_FLOOR], out=squares)
        self._raised, self._step = squares.mean(dim=0), torch.as_tensor(state["step"]).clone()

    def follow(self) -> None:
        """Bring the floor up to date after the optimizer's step."""
        import torch

        state = self._state
        gained = (state[_SECOND_MOMENTS].mean(dim=0) - self._beta * self._raised).clamp_min(0.0)
        stepped = (torch.as_tensor(state["step"]) > self._step).to(gained.device)
        state[_FLOOR] = torch.where(stepped, self._beta * state[_FLOOR] + gained, state[_FLOOR])
