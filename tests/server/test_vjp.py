"""The identity that shapes the system: one VJP of the summed view gradients is Algorithm 1's aggregate."""

import copy

import pytest
import torch

from tessera.benchmarks.reference_client import NaiveClient, personalized_refinement
from tessera.client import cohort
from tessera.client.histories import histories
from tessera.common.config.settings import Settings
from tessera.common.protocol.updates import Update
from tessera.server.strategies.fedvlr import FedVLR
from tests.support.catalogues import small_catalogue, small_split

VARIANTS = {
    "fedavg-bce-sgd": {"backbone": "fedavg", "loss": "bce", "optimizer": "sgd", "local_epochs": 3, "history_mask": 0.0},
    "fedavg-bce-examples": {
        "backbone": "fedavg",
        "loss": "bce",
        "weighting": "examples",
        "local_epochs": 2,
        "history_mask": 0.3,
    },
    "history-softmax-adam": {"backbone": "history", "loss": "softmax", "optimizer": "adam", "local_epochs": 3},
    "history-softmax-aged": {"backbone": "history", "loss": "softmax", "recency": 0.7, "local_epochs": 2},
    "history-next": {
        "backbone": "history",
        "loss": {"name": "next", "next_item_samples": 3},
        "recency": 1.0,
        "history_mask": 0.3,
        "local_epochs": 2,
    },
}


def start(local: dict[str, object]) -> tuple[Settings, FedVLR]:
    """A strategy in double precision whose broadcast is not rounded."""
    settings = Settings.model_validate(
        {
            "name": "vjp",
            "data": {"folder": "none"},
            "views": {"dim": 8, "id_dim": 6},
            "local": {"learning_rate": 0.05, **local},
            "server": {"optimizer": "sgd", "learning_rate": 1.0},
        }
    )
    strategy = FedVLR(settings, small_catalogue(n_items=30))
    strategy.generator.double()
    return settings, strategy


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_vjp_of_the_cohort_is_algorithm_1_with_all_parameters_on_the_client(variant: str) -> None:
    settings, strategy = start(VARIANTS[variant])
    local, split = settings.local, small_split(n_users=9, n_items=30)
    before = copy.deepcopy(strategy.generator)
    sent = strategy.build_views()

    state = cohort.start_state(split.users, local, sent["views"], seed=7)
    people = histories(split).to(torch.device("cpu"), torch.float64)
    moved, update = cohort.train(state, sent, people, local, seed=7, round=3)
    strategy.aggregate(update)

    aggregate = {name: torch.zeros_like(value) for name, value in before.named_parameters()}
    total_weight = 0.0
    for row, user in enumerate(split.users):
        items = split.train_items[split.offsets[row] : split.offsets[row + 1]].tolist()
        client = NaiveClient(len(sent["views"]), 8, local.backbone.name, torch.float64)
        names = {"head": "theta", "bias": "offset"} if local.backbone.name == "fedavg" else {"user": "theta"}
        names |= {"router.scale": "scale", "router.bias": "bias"}
        for name, own in names.items():
            getattr(client, own).data.copy_(state.parameters[name][row])
        _, gradients = personalized_refinement(client, before, user, items, 30, local, seed=7, round=3)
        alpha = len(items) if local.weighting == "examples" else 1
        total_weight += alpha
        for name, gradient in gradients.items():
            aggregate[name] += alpha * gradient
        for name, own in names.items():
            torch.testing.assert_close(moved.parameters[name][row], getattr(client, own).data, rtol=0, atol=1e-9)

    # The server's SGD with rate 1 subtracts exactly the aggregate.
    after = dict(strategy.generator.named_parameters())
    for name, value in before.named_parameters():
        torch.testing.assert_close(after[name], value - aggregate[name] / total_weight, rtol=1e-6, atol=1e-9)
    assert max(float(gradient.abs().max()) for gradient in aggregate.values()) > 1e-3


def test_gradients_reach_every_shared_parameter() -> None:
    """Two rounds with the same people: what shifts a view as a whole no softmax sees, only a router that has been trained."""
    settings, strategy = start({"backbone": "history"})
    split = small_split(n_users=9, n_items=30)
    before = copy.deepcopy(strategy.generator.state_dict())
    people = histories(split).to(torch.device("cpu"), torch.float64)
    state = cohort.start_state(split.users, settings.local, strategy.build_views()["views"], seed=0)
    for round in (1, 2):
        state, update = cohort.train(state, strategy.build_views(), people, settings.local, 0, round)
        strategy.aggregate(update)
    assert all((before[name] != value).any() for name, value in strategy.generator.state_dict().items())


def test_gradients_of_another_shape_are_refused() -> None:
    _, strategy = start({"backbone": "fedavg"})
    strategy.build_views()
    with pytest.raises(Exception, match=r"'views'.*shape"):
        strategy.aggregate(Update({"views": torch.zeros(1, 2, 3)}, weight=1.0))
    with pytest.raises(Exception, match="no user took part"):
        strategy.aggregate(Update())


def test_state_is_taken_up_exactly() -> None:
    settings, strategy = start({"backbone": "history"})
    other = start({"backbone": "history"})[1]
    split = small_split(n_users=9, n_items=30)
    people = histories(split).to(torch.device("cpu"), torch.float64)
    sent = strategy.build_views()
    state = cohort.start_state(split.users, settings.local, sent["views"], seed=0)
    strategy.aggregate(cohort.train(state, sent, people, settings.local, 0, 1)[1])
    other.restore(strategy.state())
    assert all(torch.equal(value, other.state()[name]) for name, value in strategy.state().items())
    assert all(torch.equal(value, other.build_views()[name]) for name, value in strategy.build_views().items())


def test_rates_fall_evenly_where_the_schedule_is_linear_and_go_on_falling_after_a_restart() -> None:
    """Steps of plain gradient descent on one gradient are as long as the rates; nothing is left after the last round."""
    settings, _ = start(VARIANTS["fedavg-bce-sgd"])
    server = settings.server.model_copy(update={"schedule": "linear"})
    views = settings.views.model_copy(update={"operators": ()})
    settings = settings.model_copy(update={"server": server, "views": views, "rounds": 4})
    strategy, lengths = FedVLR(settings, small_catalogue(n_items=30)), []
    for round in range(1, 6):
        if round == 3:
            again = FedVLR(settings, small_catalogue(n_items=30))
            again.restore(strategy.state())
            strategy = again
        before = strategy.generator.projections[0].bias.detach().clone()
        sent = strategy.build_views()
        strategy.aggregate(Update({name: torch.ones_like(value) for name, value in sent.items()}, 1.0))
        lengths.append(float((strategy.generator.projections[0].bias - before).norm()))
    assert lengths[4] == 0
    assert [one / lengths[0] for one in lengths[:4]] == pytest.approx([1, 0.75, 0.5, 0.25], rel=1e-4)
    assert not any("schedule" in name for name in start(VARIANTS["fedavg-bce-sgd"])[1].state())
