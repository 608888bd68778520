"""A cohort is its users trained one at a time; nobody's presence changes anybody else's result."""

import numpy as np
import pytest
import torch

from tessera.client import cohort
from tessera.client.histories import histories
from tessera.common.config.settings import LocalSettings
from tessera.common.data.interactions import Split
from tessera.common.data.targets import Targets
from tessera.common.protocol.updates import Update
from tests.support.catalogues import small_split

N_ITEMS, DIM, N_VIEWS = 30, 8, 5
SETTINGS = {
    "fedavg": LocalSettings(backbone="fedavg", loss="bce", local_epochs=3, optimizer="adam", learning_rate=0.02),
    "fedavg-sgd": LocalSettings(backbone="fedavg", loss="bce", local_epochs=3, optimizer="sgd", weighting="examples"),
    "history": LocalSettings(backbone="history", loss="softmax", local_epochs=2, weight_decay=0.1),
    "next": LocalSettings(
        backbone="history", loss={"name": "next", "next_item_samples": 3}, recency=1.0, history_mask=0.2, local_epochs=2
    ),
    "uniform": LocalSettings(backbone="history", loss="bce", local_epochs=2, route="uniform"),
}


def sent() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(N_VIEWS, N_ITEMS, DIM, generator=generator, dtype=torch.float64)
    return {"views": views, "history": torch.randn(N_ITEMS, DIM, generator=generator, dtype=torch.float64)}


def run(split, settings, rounds=3):
    people = histories(split).to(torch.device("cpu"), torch.float64)
    state, updates = cohort.start_state(split.users, settings, sent()["views"], seed=1), []
    for round in range(1, rounds + 1):
        state, update = cohort.train(state, sent(), people, settings, seed=1, round=round)
        updates.append(update)
    return state, updates


@pytest.mark.parametrize("name", SETTINGS)
def test_cohort_equals_one_user_at_a_time(name: str) -> None:
    split = small_split(n_users=11, n_items=N_ITEMS)
    together, updates = run(split, SETTINGS[name])
    alone = [run(split.take(np.array([row])), SETTINGS[name]) for row in range(11)]
    for row, (state, _) in enumerate(alone):
        for key, value in (together.parameters | together.optimizer).items():
            single = (state.parameters | state.optimizer)[key][0]
            torch.testing.assert_close(value[row], single, rtol=1e-9, atol=1e-9)
    for round, update in enumerate(updates):
        total = sum((parts[round] for _, parts in alone), Update())
        assert total.weight == pytest.approx(update.weight)
        assert total.sums["loss"] == pytest.approx(update.sums["loss"])
        for key, gradient in update.gradients.items():
            torch.testing.assert_close(total.gradients[key], gradient, rtol=1e-6, atol=1e-9)


def test_users_differ_and_what_was_sent_does_not_move() -> None:
    split = small_split(n_users=6, n_items=N_ITEMS)
    state, _ = run(split, SETTINGS["history"])
    users = state.parameters["user"]
    assert all(not torch.equal(users[0], users[row]) for row in range(1, 6))
    tensors = sent()
    people = histories(split).to(torch.device("cpu"), torch.float64)
    cohort.train(state, tensors, people, SETTINGS["history"], seed=1, round=1)
    assert all(torch.equal(tensors[name], value) for name, value in sent().items())


def test_router_weights_depend_on_the_history() -> None:
    split = small_split(n_users=6, n_items=N_ITEMS)
    state, _ = run(split, SETTINGS["history"], rounds=20)
    people = histories(split).to(torch.device("cpu"), torch.float64)
    _, weights = cohort.scores(state.parameters, sent(), people, SETTINGS["history"])
    torch.testing.assert_close(weights.sum(1), torch.ones(6, dtype=torch.float64))
    other = histories(small_split(n_users=6, n_items=N_ITEMS, seed=5)).to(torch.device("cpu"), torch.float64)
    _, changed = cohort.scores(state.parameters, sent(), other, SETTINGS["history"])
    assert not torch.allclose(weights, changed)


def test_a_long_history_costs_no_padding_for_the_others() -> None:
    """Memory follows the number of events: one user with all items beside many with two events each."""
    n_users, n_items = 400, 5000
    offsets = np.concatenate([[0, n_items], n_items + 2 * np.arange(1, n_users)])
    items = np.concatenate([np.arange(n_items), np.random.default_rng(0).integers(0, n_items, 2 * (n_users - 1))])
    nobody = Targets.none(n_users)
    split = Split(tuple(map(str, range(n_users))), offsets, items, nobody, nobody, n_items)
    people = histories(split)
    assert people.items.numel() == n_items + 2 * (n_users - 1)
    table = torch.randn(n_items, 16)
    torch.testing.assert_close(people.total(table)[0], table.sum(0), rtol=1e-4, atol=1e-3)
