"""Stacked local optimisers: row u steps as user u's own torch optimiser would."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.client import optimizers
from tessera.client.private_state import PrivateState
from tessera.common.config.settings import LocalSettings
from tests.support.splits import settings, tries

SHAPES = {"router.scale": (3, 4), "user": (4,), "bias": (1,)}
KINDS = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW}
USERS = ("ann", "bob", "cat", "dan")


def stacked(draws: torch.Generator, n_users: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(n_users, *shape, generator=draws, dtype=torch.float64) for name, shape in SHAPES.items()}


class Alone:
    """One user with modules and an optimiser of their own."""

    def __init__(self, parameters: dict[str, torch.Tensor], user: int, local: LocalSettings) -> None:
        self.parameters = {name: torch.nn.Parameter(value[user].clone()) for name, value in parameters.items()}
        rate, decay = local.learning_rate, local.weight_decay
        self.optimizer = KINDS[local.optimizer](self.parameters.values(), lr=rate, weight_decay=decay)

    def step(self, gradients: dict[str, torch.Tensor], user: int) -> None:
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name][user].clone()
        self.optimizer.step()


def assert_rows(parameters: dict[str, torch.Tensor], people: list[Alone]) -> None:
    for user, alone in enumerate(people):
        for name, parameter in alone.parameters.items():
            torch.testing.assert_close(parameters[name][user], parameter.data, rtol=1e-11, atol=1e-13)


def local_settings(kind: str, decay: float, rate: float = 0.05) -> LocalSettings:
    return settings(local={"optimizer": kind, "weight_decay": decay, "learning_rate": rate}).local


@pytest.mark.parametrize("decay", [0.0, 0.3])
@tries(25)
@given(rounds=st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=12), seed=st.integers(0, 999))
def test_adam_is_torchs_adamw_for_users_who_step_in_different_rounds(
    decay: float, rounds: list[set[int]], seed: int
) -> None:
    """As on a device: only those who take part are taken out of the state, step, and are put back."""
    local, draws = local_settings("adam", decay), torch.Generator().manual_seed(seed)
    parameters = stacked(draws, len(USERS))
    people = [Alone(parameters, user, local) for user in range(len(USERS))]
    state = PrivateState(USERS, parameters, optimizers.start(local, parameters))
    for taking_part in rounds:
        rows = torch.tensor(sorted(taking_part))
        gradients = stacked(draws, len(USERS))
        some = state.take(rows)
        own = {name: gradient[rows] for name, gradient in gradients.items()}
        moved = PrivateState(some.users, *optimizers.step(local, some.parameters, own, some.optimizer))
        state = state.put(rows, moved)
        for user in taking_part:
            people[user].step(gradients, user)
    assert_rows(state.parameters, people)
    steps = {name: value.tolist() for name, value in state.optimizer.items() if name.startswith(optimizers.STEPS)}
    assert len(steps) == len(state.parameters)
    assert all(counted == [sum(user in some for some in rounds) for user in range(4)] for counted in steps.values())


@pytest.mark.parametrize("rate", [1e-3, 0.5])
def test_sgd_is_torchs_sgd(rate: float) -> None:
    local, draws = local_settings("sgd", 0.0, rate), torch.Generator().manual_seed(1)
    parameters = stacked(draws, 4)
    people = [Alone(parameters, user, local) for user in range(4)]
    moments = optimizers.start(local, parameters)
    for _ in range(5):
        gradients = stacked(draws, 4)
        parameters, moments = optimizers.step(local, parameters, gradients, moments)
        for user, alone in enumerate(people):
            alone.step(gradients, user)
    assert moments == {}
    assert_rows(parameters, people)


def test_sgds_weight_decay_shrinks_as_torchs_does() -> None:
    """For SGD a decoupled decay and torch's, which is added to the gradient, are the same step."""
    local, draws = local_settings("sgd", 0.3), torch.Generator().manual_seed(1)
    parameters = stacked(draws, 4)
    people = [Alone(parameters, user, local) for user in range(4)]
    for _ in range(5):
        gradients = stacked(draws, 4)
        parameters, _ = optimizers.step(local, parameters, gradients, {})
        for user, alone in enumerate(people):
            alone.step(gradients, user)
    assert_rows(parameters, people)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_step_returns_new_tensors(kind: str) -> None:
    """The state before a failed round must still be whole."""
    local, draws = local_settings(kind, 0.1), torch.Generator().manual_seed(1)
    parameters = stacked(draws, 2)
    moments = optimizers.start(local, parameters)
    before = {name: value.clone() for name, value in (parameters | moments).items()}
    stepped, moved = optimizers.step(local, parameters, stacked(draws, 2), moments)
    assert all(torch.equal(value, before[name]) for name, value in (parameters | moments).items())
    assert not any(torch.equal(value, before[name]) for name, value in (stepped | moved).items())


def test_a_zero_gradient_does_not_move_a_user_who_never_moved() -> None:
    """The user vector starts at zero and may get no gradient at all; 0 / (0 + epsilon) is no step."""
    local = local_settings("adam", 0.0)
    parameters = {"user": torch.zeros(2, 3)}
    stepped, _ = optimizers.step(local, parameters, parameters, optimizers.start(local, parameters))
    assert torch.equal(stepped["user"], parameters["user"])
