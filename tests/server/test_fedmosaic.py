"""FedMosaic and its peers on the server: G = W L by naive loops, whatever W; nothing lost in a checkpoint."""

from dataclasses import replace

import pytest
import torch

from tessera.common.config.settings import Settings
from tessera.common.errors import DataError, RoundAbandoned, RunError
from tessera.common.protocol.adapters import ADAPTERS, MODULE, AdapterUpdate, ClientAdapters
from tessera.common.protocol.updates import Update
from tessera.server.strategies.fedmosaic import FedMosaic
from tests.support.qa_devices import naive_mix
from tests.support.splits import settings

CLIENTS = [f"{number:016x}" for number in range(5)]
TOWERS = ["tiny-a", "tiny-a", "small-b", "tiny-a", "base-c"]
"""Small and base are alone."""
WIDTHS = {"tiny-a": 3, "small-b": 5, "base-c": 7}


def adapter_update(number: int, seed: int = 0) -> AdapterUpdate:
    draws = torch.Generator().manual_seed(100 * seed + number)
    tower = TOWERS[number]
    pq = {
        f"reader.{block}.mlp.c_fc.{part}": torch.randn(shape, generator=draws)
        for block in (0, 1)
        for part, shape in (("P", (2, 2)), ("Q", (2,)))
    }
    lora = {f"layers.{n}.A": torch.randn(2, WIDTHS[tower], generator=draws) for n in range(WIDTHS[tower] - 2)}
    return AdapterUpdate(tower, pq, lora, torch.randn(12, generator=draws))


def adapters(towers: dict[str, str], modules: dict[str, AdapterUpdate] | None = None) -> Update:
    return Update().put(ADAPTERS, ClientAdapters(towers, modules or {}))


def sent(numbers: list[int], seed: int = 0) -> Update:
    modules = {CLIENTS[number]: adapter_update(number, seed) for number in numbers}
    towers = {client: module.tower for client, module in modules.items()}
    return adapters(towers, modules)


def strategy(method: str = "fedmosaic", largest: float = 0, **own: object) -> FedMosaic:
    chosen: Settings = settings(
        data={"folder": "x", "kind": "questions"},
        strategy="fedmosaic",
        mosaic={"method": {"name": method, **own}, **({"largest": largest} if largest else {})},
    )
    known = {TOWERS[number]: adapter_update(number) for number in range(5)}
    shapes = {tower: {name: tuple(v.shape) for name, v in one.parts().items()} for tower, one in known.items()}
    return FedMosaic(chosen, "items", shapes)


def module(strategy: FedMosaic, client: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(MODULE): value for name, value in strategy.broadcast(client).content.items()}


@pytest.mark.parametrize(("method", "relevant"), [("fedmosaic", True), ("pq", False), ("fedit", False)])
def test_what_each_gets_is_the_naive_mix_of_what_all_sent_last(method: str, relevant: bool) -> None:
    server = strategy(method)
    server.aggregate(sent([0, 1, 2, 3, 4]))
    server.aggregate(sent([1, 2, 4], seed=1))  # the others are absent
    last = {**sent([0, 1, 2, 3, 4])[ADAPTERS].modules, **sent([1, 2, 4], seed=1)[ADAPTERS].modules}
    for client in CLIENTS:
        got, wanted = module(server, client), naive_mix(last, client, relevant)
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)
    for alone in (2, 4):
        own = last[CLIENTS[alone]].lora
        assert all(torch.equal(module(server, CLIENTS[alone])[name], value) for name, value in own.items())


def test_oneself_counts_where_that_is_asked_for() -> None:
    without, included = strategy(), strategy(include_self=True)
    for server in (without, included):
        server.aggregate(sent([0, 1, 2, 3, 4]))
    for number, (apart, with_self) in enumerate(
        zip(without.report()["relevance"]["weights"], included.report()["relevance"]["weights"], strict=True)
    ):
        own = with_self[number]
        assert apart[number] == 0 < own
        assert [weight * (1 - own) for weight in apart] == pytest.approx(
            [0 if other == number else weight for other, weight in enumerate(with_self)]
        )


def test_nothing_goes_down_before_the_first_round_or_where_nothing_is_shared() -> None:
    for method in ("fedmosaic", "sft"):
        server = strategy(method)
        assert not server.broadcast(None).content
        assert not server.broadcast(CLIENTS[0]).content
        server.aggregate(sent([0, 1]) if method == "fedmosaic" else adapters({CLIENTS[0]: "tiny-a"}))
        assert not server.broadcast(None).content
        assert not server.broadcast(CLIENTS[2]).content, "it has sent nothing yet"
        assert bool(server.broadcast(CLIENTS[0]).content) == (method == "fedmosaic")
    with pytest.raises(RoundAbandoned):
        server.aggregate(Update())
    with pytest.raises(RunError, match="spectral_rounds"):
        server.initialise(torch.ones(1, 1), torch.ones(1))


def test_a_module_is_made_anew_when_somebody_sent_something() -> None:
    server = strategy()
    server.aggregate(sent([0, 1, 2]))
    before = server.broadcast(CLIENTS[0])
    assert server.broadcast(CLIENTS[0]) is before, "merged once a round"
    server.aggregate(sent([1], seed=1))
    assert server.broadcast(CLIENTS[0]).name != before.name


def test_a_checkpoint_holds_all_that_was_sent() -> None:
    server, again = strategy(), strategy()
    server.aggregate(sent([0, 1, 2, 3, 4]))
    again.aggregate(sent([0, 4], seed=2))  # forgotten with the restore
    again.restore(server.state())
    assert again.report() == server.report()
    for client in CLIENTS:
        assert again.broadcast(client).name == server.broadcast(client).name
    with pytest.raises(DataError, match="tower"):
        strategy().restore({f"client/{CLIENTS[0]}/huge-0/signature": torch.zeros(12)})


def test_a_device_with_another_tower_is_named_whatever_it_returns() -> None:
    """Its scores would otherwise count among those of a run that it cannot take part in."""
    strategy("sft").check(adapters({CLIENTS[0]: "tiny-a"}))
    with pytest.raises(DataError, match=rf"client '{CLIENTS[0]}' has a tower 'tiny-b', not one of \['base-c'"):
        strategy("sft").check(adapters({CLIENTS[0]: "tiny-b"}))


def test_a_norm_is_too_large_only_above_the_limit() -> None:
    server, update = strategy(largest=10.0), sent([0])
    (client, own), ones = *update[ADAPTERS].modules.items(), torch.full((2, 2), 5.0)
    name = "reader.0.mlp.c_fc.P"
    server.check(adapters({}, {client: replace(own, pq={**own.pq, name: ones})}))
    with pytest.raises(DataError, match=rf"client '{client}' sent pq {name} of a norm above 10"):
        server.check(adapters({}, {client: replace(own, pq={**own.pq, name: 1.01 * ones})}))
