"""RELA and its relatives: G = W L with rows of W that sum to 1."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessera.common.errors import DataError
from tessera.common.protocol.adapters import AdapterUpdate
from tessera.server.adapters.merging import AdapterStore, merge
from tessera.server.adapters.relevance import relevance, similarity, uniform

PLACE = "image.0.attn.q_proj"


def signatures(n_clients: int, seed: int) -> Tensor:
    return torch.randn(n_clients, 12, generator=torch.Generator().manual_seed(seed))


def sent(level: int, tower: str = "tiny", width: int = 6) -> AdapterUpdate:
    value = float(level)
    pq = {f"{PLACE}.P": torch.full((2, 2), value), f"{PLACE}.Q": torch.full((2,), value)}
    return AdapterUpdate(tower, pq, {"layers.0.A": torch.full((2, width), value)}, torch.tensor([1.0, value]))


def pool() -> AdapterStore:
    """A server's, that knows a tower of either width."""
    known = {"tiny": sent(0), "base": sent(0, width=9)}
    return AdapterStore(
        {tower: {name: tuple(value.shape) for name, value in one.parts().items()} for tower, one in known.items()}
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.floats(0.05, 5.0), st.booleans(), st.integers(0, 99), st.data())
def test_weights_are_row_stochastic_and_leave_oneself_out(
    n_clients: int, temperature: float, include_self: bool, seed: int, data: st.DataObject
) -> None:
    groups = data.draw(st.none() | st.lists(st.sampled_from("abc"), min_size=n_clients, max_size=n_clients))
    weights = relevance(signatures(n_clients, seed), temperature, include_self, groups)
    alone = [groups.count(group) == 1 for group in groups] if groups else [n_clients == 1] * n_clients
    torch.testing.assert_close(weights.sum(1), torch.ones(n_clients, dtype=torch.float64))
    assert (weights >= 0).all()
    for client in range(n_clients):
        assert bool(weights[client, client] > 0) == (include_self or alone[client])
        for other in range(n_clients):
            assert not groups or groups[client] == groups[other] or weights[client, other] == 0
    torch.testing.assert_close(uniform(n_clients, groups).sum(1), torch.ones(n_clients, dtype=torch.float64))


def test_the_softmax_is_the_papers() -> None:
    drawn = signatures(4, 0)
    weights = relevance(drawn, 0.5, include_self=True)
    cosine = torch.nn.functional.cosine_similarity(drawn[1], drawn, dim=1)
    torch.testing.assert_close(weights[1].float(), torch.softmax(cosine / 0.5, 0))
    without = relevance(drawn, 0.5)
    assert without[1, 1] == 0
    torch.testing.assert_close(without[1, 0] / without[1, 2], weights[1, 0] / weights[1, 2])


def test_relatives_weigh_more_the_colder_the_softmax() -> None:
    family = torch.eye(12)[0]
    drawn = 0.3 * signatures(6, 1) + torch.stack([family] * 3 + [-family] * 3)
    in_family = [float(relevance(drawn, temperature)[0, 1:3].sum()) for temperature in (5.0, 0.5, 0.1)]
    assert 2 / 5 < in_family[0] < in_family[1] < in_family[2] < 1
    assert float(similarity(drawn)[0, 1:3].mean()) > float(similarity(drawn)[0, 3:].mean())


def test_a_client_that_has_learnt_nothing_yet_resembles_nobody() -> None:
    drawn = signatures(3, 0)
    drawn[1] = 0
    assert similarity(drawn)[1].tolist() == [0, 0, 0]
    assert relevance(drawn)[1].tolist() == [0.5, 0, 0.5]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(0, 99), st.floats(-3, 3), st.floats(-3, 3))
def test_merging_is_linear_and_leaves_what_all_agree_on(n_clients: int, seed: int, a: float, b: float) -> None:
    one, other = ({"P": row} for row in signatures(2, seed).view(2, 3, 4))
    weights = relevance(signatures(n_clients, seed))
    left = [{"P": one["P"] * number} for number in range(n_clients)]
    right = [{"P": other["P"] - number} for number in range(n_clients)]
    mixed = [{"P": a * x["P"] + b * y["P"]} for x, y in zip(left, right, strict=True)]
    for both, x, y in zip(merge(weights, mixed), merge(weights, left), merge(weights, right), strict=True):
        torch.testing.assert_close(both["P"], a * x["P"] + b * y["P"], rtol=1e-4, atol=1e-4)
    for same in merge(weights, [one] * n_clients):
        torch.testing.assert_close(same["P"], one["P"])


def test_fedavg_is_the_mean_and_groups_are_means_of_their_own() -> None:
    modules = [{"P": torch.tensor([float(value)])} for value in (1, 2, 6)]
    assert [float(g["P"]) for g in merge(uniform(3), modules)] == [3, 3, 3]
    assert [float(g["P"]) for g in merge(uniform(3, ["x", "x", "y"]), modules)] == [1.5, 1.5, 6]


def test_pq_is_merged_over_all_and_lora_within_a_tower() -> None:
    clients = pool()
    for name, contribution in {"a": sent(1), "b": sent(3), "c": sent(8, "base", width=9)}.items():
        clients.take(name, contribution)
    merged = clients.merged(lambda drawn, groups: relevance(drawn, groups=groups))
    assert sorted(merged) == ["a", "b", "c"]
    assert all(set(got) == {f"{PLACE}.P", f"{PLACE}.Q", "layers.0.A"} for got in merged.values())
    assert torch.equal(merged["a"]["layers.0.A"], sent(3).lora["layers.0.A"])
    assert torch.equal(merged["b"]["layers.0.A"], sent(1).lora["layers.0.A"])
    assert torch.equal(merged["c"]["layers.0.A"], sent(8, "base", 9).lora["layers.0.A"])  # alone: its own back
    assert 3 < float(merged["a"][f"{PLACE}.P"][0, 0]) < 8  # from the others, not from itself
    assert merged["a"][f"{PLACE}.P"].dtype == torch.float32


def test_an_absent_client_keeps_what_it_sent_last_and_order_changes_nothing() -> None:
    clients, other = pool(), pool()
    for name, value in (("a", 1), ("b", 2)):
        clients.take(name, sent(value))
    clients.take("a", sent(5))  # the next round, without b
    for name, value in (("b", 2), ("a", 5)):
        other.take(name, sent(value))
    weigh = lambda drawn, groups: relevance(drawn, groups=groups)  # noqa: E731
    assert torch.equal(clients.merged(weigh)["a"][f"{PLACE}.P"], torch.full((2, 2), 2.0))
    assert torch.equal(clients.merged(weigh)["b"][f"{PLACE}.P"], torch.full((2, 2), 5.0))
    assert all(
        torch.equal(clients.merged(weigh)[name][f"{PLACE}.P"], got[f"{PLACE}.P"])
        for name, got in other.merged(weigh).items()
    )


@pytest.mark.parametrize("part", ["pq", "lora", "signature"])
@pytest.mark.parametrize("fault", ["not finite", "of shape"])
def test_a_broken_contribution_is_refused_by_name_and_the_last_one_stays(part: str, fault: str) -> None:
    clients = pool()
    clients.take("a", sent(1))
    clients.take("b", sent(2))
    good = sent(3)
    given = getattr(good, part)
    name, value = next(iter(given.items())) if isinstance(given, dict) else ("", given)
    broken = torch.full_like(value, torch.nan) if fault == "not finite" else torch.zeros(50, 50)
    wrong = replace(good, **{part: {**given, name: broken} if name else broken})
    with pytest.raises(DataError, match=f"client 'b' sent {part}.*{fault}"):
        clients.take("b", wrong)
    assert clients.by_client["b"].signature.tolist() == [1.0, 2.0]
    with pytest.raises(DataError, match=r"client 'c' sent pq .*P of shape None"):
        clients.take("c", replace(good, pq={f"{PLACE}.Q": torch.zeros(2)}))
    with pytest.raises(DataError, match=r"client 'c' has a tower 'huge'"):
        clients.take("c", replace(good, tower="huge"))
