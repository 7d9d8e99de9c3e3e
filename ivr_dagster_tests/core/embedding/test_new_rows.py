"""Updates of new tokens' rows, checked against Adam in NumPy."""

import numpy as np
import pytest
import torch

from ivr_dagster.core.embedding.new_rows import RowRates, RowUpdates, ngram_shares
from ivr_dagster.core.tokens.byte_level import string_of

V, D = 12, 5
NEW = {3: string_of(" 했다"), 7: string_of("습니다"), 8: string_of(" 다"), 11: string_of("xyz")}


def dense_shares(strings: list[str], longest: int = 3) -> np.ndarray:
    indices, values, columns = ngram_shares(strings, longest)
    matrix = np.zeros((len(strings), columns))
    for (row, column), value in zip(indices, values, strict=True):
        matrix[row, column] = value
    return matrix


def test_ngrams_of_several_tokens_are_shared() -> None:
    shared = dense_shares([NEW[i] for i in sorted(NEW)]).astype(bool).T.tolist()
    assert sorted(shared) == [
        [True, False, True, False],  # " " at the beginning
        [True, False, True, False],  # " " anywhere
        [True, True, True, False],  # "다"
        [True, True, True, True],  # common to all
    ]


def test_share_matrix_has_unit_rows_and_distinct_initial_ngrams() -> None:
    norms = np.linalg.norm(dense_shares([NEW[i] for i in sorted(NEW)]), axis=1)
    assert norms == pytest.approx(np.ones(len(NEW)))
    shared = dense_shares(["ab", "ac", "za"]).astype(bool).T.tolist()
    assert sorted(shared) == [[True, True, False], [True, True, True], [True, True, True]]


class Adam:
    """Kingma and Ba (2015), algorithm 1; if `floored`, second moments are at least their mean over rows."""

    def __init__(self, shape: tuple[int, int], floored: bool) -> None:
        self.first, self.second, self.floor = np.zeros(shape), np.zeros(shape), np.zeros(shape[1])
        self.floored, self.steps = floored, 0

    def __call__(self, gradient: np.ndarray, lr: float) -> np.ndarray:
        self.steps += 1
        if self.floored:
            self.second = np.maximum(self.second, self.floor)
            self.floor = 0.95 * self.floor + 0.05 * (gradient**2).mean(axis=0)
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.95 * self.second + 0.05 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.95**self.steps)
        return -lr * first / (np.sqrt(second) + 1e-8)


def sparse_gradient(generator: torch.Generator) -> torch.Tensor:
    """A gradient that is large in a few rows only, as a batch produces."""
    occurs = torch.rand(V, 1, generator=generator) < 0.3
    return torch.randn(V, D, generator=generator) * torch.where(occurs, 1.0, 1e-3)


@pytest.mark.parametrize("floored", [False, True])
def test_rows_follow_adam_with_their_own_gradients_and_those_of_their_ngrams(floored: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.nn.Parameter(torch.randn(V, D, generator=generator))
    rates, lr, ids = RowRates(kept=0.5, new=3.0, shared=2.0, floored=floored), 0.01, sorted(NEW)
    rows = RowUpdates([matrix], NEW, rates)
    optimizer = torch.optim.AdamW(rows.parameter_groups(lr, 0.0), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    rows.attach(optimizer)

    shares = dense_shares([NEW[i] for i in ids])
    expected = matrix.detach().double().numpy().copy()
    own, shared = Adam((V, D), floored), Adam((shares.shape[1], D), floored)
    factor = np.full((V, 1), rates.kept)
    factor[ids] = rates.new
    for _ in range(6):
        gradient = sparse_gradient(generator)
        matrix.grad = gradient.clone()
        optimizer.step()
        optimizer.zero_grad()
        expected += factor * own(gradient.double().numpy(), lr)
        expected[ids] += shares @ shared(shares.T @ gradient.double().numpy()[ids], lr * rates.shared)
    assert matrix.detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_floored_rows_of_absent_tokens_barely_move() -> None:
    moved = []
    for floored in (False, True):
        generator = torch.Generator().manual_seed(0)
        matrix = torch.nn.Parameter(torch.zeros(V, D))
        rows = RowUpdates([matrix], NEW, RowRates(floored=floored))
        optimizer = torch.optim.AdamW(rows.parameter_groups(0.1, 0.0), lr=0.1, weight_decay=0.0)
        rows.attach(optimizer)
        for _ in range(20):
            gradient = 1e-4 * torch.ones(V, D)  # a softmax pushes all rows down a little
            gradient[0] = torch.randn(D, generator=generator)
            matrix.grad = gradient
            optimizer.step()
            with torch.no_grad():
                matrix[1:] *= optimizer.state[matrix]["step"] > 1  # in its first step, Adam has no moments yet
        moved.append(matrix.detach()[1:].abs().max().item())
    assert moved[0] > 1.5
    assert moved[1] < 0.01


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_skipped_by_the_loss_scaler_changes_nothing(fused: bool) -> None:
    def run(overflow: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        matrix = torch.nn.Parameter(torch.zeros(V, D))
        rows = RowUpdates([matrix], NEW, RowRates(new=2.0, shared=2.0, floored=True))
        optimizer = torch.optim.AdamW(rows.parameter_groups(0.1, 0.0), lr=0.1, fused=fused)
        rows.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
        scaler.scale(torch.zeros(1))  # creates its scale
        for step in range(6):
            gradient = sparse_gradient(generator)
            if step == 3:
                if not overflow:
                    continue
                gradient[0, 0] = torch.inf
            matrix.grad = gradient * scaler.get_scale()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([matrix], 1e9)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return matrix.detach()

    assert run(overflow=True).isfinite().all()
    assert torch.allclose(run(overflow=True), run(overflow=False), atol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "Adafactor"])  # no second moments; others than Adam's, and no betas
def test_optimizers_without_adams_moments_are_unchanged(name: str) -> None:
    from transformers import Adafactor

    options = {"relative_step": False, "scale_parameter": False}
    moved = []
    for floored in (False, True):
        bias = torch.nn.Parameter(torch.zeros(V))
        rows = RowUpdates([bias], NEW, RowRates(new=2.0, floored=floored))
        groups = rows.parameter_groups(0.1, 0.0)
        optimizer = torch.optim.SGD(groups, lr=0.1) if name == "SGD" else Adafactor(groups, lr=0.1, **options)
        rows.attach(optimizer)
        for _ in range(3):
            bias.grad = torch.linspace(0.1, 1.0, V)
            optimizer.step()
        moved.append(bias.detach())
    assert torch.equal(*moved)


def test_rates_of_new_rows_do_not_affect_kept_rows() -> None:
    kept = [i for i in range(V) if i not in NEW]
    moved = []
    for rates in (RowRates(), RowRates(new=10.0, shared=10.0)):
        torch.manual_seed(1)
        matrix = torch.nn.Parameter(torch.randn(V, D))
        rows = RowUpdates([matrix], NEW, rates)
        optimizer = torch.optim.AdamW(rows.parameter_groups(0.1, 0.0), lr=0.1)
        rows.attach(optimizer)
        matrix.grad = torch.randn(V, D)
        optimizer.step()
        moved.append(matrix.detach()[kept])
    assert torch.equal(*moved)


def test_resuming_from_the_optimizer_state_is_exact() -> None:
    def run(stop: int | None) -> torch.Tensor:
        torch.manual_seed(2)
        matrix = torch.nn.Parameter(torch.randn(V, D))
        gradients = [torch.randn(V, D) for _ in range(6)]

        def fresh(value: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
            parameter = torch.nn.Parameter(value.clone())
            rows = RowUpdates([parameter], NEW, RowRates(new=2.0, shared=2.0, floored=True))
            optimizer = torch.optim.AdamW(rows.parameter_groups(0.1, 0.0), lr=0.1)
            rows.attach(optimizer)
            return parameter, optimizer

        parameter, optimizer = fresh(matrix.detach())
        for step, gradient in enumerate(gradients):
            if step == stop:
                state = optimizer.state_dict()
                parameter, optimizer = fresh(parameter.detach())
                optimizer.load_state_dict(state)
            parameter.grad = gradient
            optimizer.step()
        return parameter.detach()

    assert torch.equal(run(None), run(3))


def test_bias_uses_the_rate_of_new_tokens_but_no_ngrams() -> None:
    bias = torch.nn.Parameter(torch.zeros(V))
    rows = RowUpdates([bias], NEW, RowRates(new=4.0, shared=4.0))
    optimizer = torch.optim.SGD(rows.parameter_groups(0.1, 0.0), lr=0.1)
    rows.attach(optimizer)
    bias.grad = torch.ones(V)
    optimizer.step()
    expected = torch.full((V,), -0.1)
    expected[sorted(NEW)] = -0.4
    assert torch.allclose(bias.detach(), expected)


def test_weight_decay_applies_to_matrices_only() -> None:
    matrix, bias = torch.nn.Parameter(torch.ones(V, D)), torch.nn.Parameter(torch.ones(V))
    groups = RowUpdates([matrix, bias], NEW, RowRates(shared=1.0)).parameter_groups(0.1, 0.25)
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0, 0.0]
    assert [group["params"][0] is each for group, each in zip(groups, (matrix, bias), strict=False)] == [True, True]
