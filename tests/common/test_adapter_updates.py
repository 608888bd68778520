"""What adapters send: the same after the wire, and put side by side in any order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.common.errors import RunError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.adapters import ADAPTERS, AdapterUpdate, ClientAdapters, flatten, unflatten
from tessera.common.protocol.tensors import content_hash
from tessera.common.protocol.updates import Update, pack_update, unpack_update
from tests.common.test_messages import WIRES
from tests.support.splits import tries

CLIENTS = [f"{number:016x}" for number in (0, 7, 2**60, 2**64 - 1)]
NAMES = ("reader.0.attn.q_proj.P", "a/b/c.Q", "lora ", "signature", "")
"""Names of parts as they are, and such as could be mistaken for something else."""


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Parts of any shape, empty ones too, or none at all."""
    draws = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = st.lists(st.integers(0, 3), max_size=2)
    return {name: torch.randn(draw(shape), generator=draws) for name in sorted(draw(st.sets(st.sampled_from(NAMES))))}


def adapters(modules: dict, towers: dict, update: Update = Update()) -> Update:
    return update.put(ADAPTERS, ClientAdapters(towers, modules))


contributions = st.builds(
    AdapterUpdate,
    st.sampled_from(["tiny-0a", "base/1", ""]),
    tensors(),
    tensors(),
    st.integers(0, 4).map(torch.ones),
    st.none() | st.integers(0, 4).map(lambda n: torch.full((n, 4), float(n))),
)


@st.composite
def updates(draw: st.DrawFn, clients: list[str]) -> Update:
    """Of any of the clients, some of whom send nothing; sums that are exact in any order."""
    modules = draw(st.dictionaries(st.sampled_from(clients), contributions)) if clients else {}
    silent = draw(st.sets(st.sampled_from(clients))) - set(modules) if clients else set()
    towers = {client: sent.tower for client, sent in modules.items()} | dict.fromkeys(silent, "small-1")
    users = float(draw(st.integers(0, 100)))
    return adapters(modules, towers, Update(weight=users, sums=MetricSums({"users": users})))


@st.composite
def three_apart(draw: st.DrawFn) -> tuple[Update, Update, Update]:
    """Three devices' updates, no client in two of them."""
    whose = {client: draw(st.integers(0, 2)) for client in CLIENTS}
    a, b, c = (draw(updates([client for client in CLIENTS if whose[client] == number])) for number in range(3))
    return a, b, c


def assert_equal(left: Update, right: Update) -> None:
    assert left[ADAPTERS].towers == right[ADAPTERS].towers
    assert {client: sent.tower for client, sent in left[ADAPTERS].modules.items()} == {
        client: sent.tower for client, sent in right[ADAPTERS].modules.items()
    }
    assert content_hash(flatten(left[ADAPTERS].modules)) == content_hash(flatten(right[ADAPTERS].modules))
    assert (left.weight, left.sums) == (right.weight, right.sums)


@tries(60)
@given(three_apart())
def test_updates_of_different_clients_add_in_any_order(apart: tuple[Update, Update, Update]) -> None:
    a, b, c = apart
    assert_equal(a + b, b + a)
    assert_equal((a + b) + c, a + (b + c))
    assert_equal(a + Update(), a)
    assert_equal(Update() + a, a)
    assert {**a[ADAPTERS].modules, **b[ADAPTERS].modules}.keys() == (a + b)[ADAPTERS].modules.keys()


@WIRES
@tries(40)
@given(update=updates(CLIENTS))
def test_adapters_arrive_as_they_were_sent(wire, update) -> None:  # type: ignore[no-untyped-def]
    assert_equal(unpack_update(wire(pack_update(update)), [ADAPTERS]), update)


@tries(60)
@given(contributions)
def test_parts_are_put_together_again(sent: AdapterUpdate) -> None:
    again = AdapterUpdate.of_parts(sent.tower, sent.parts())
    assert again.parts().keys() == sent.parts().keys()
    assert (again.pq.keys(), again.lora.keys()) == (sent.pq.keys(), sent.lora.keys())
    whole = unflatten(flatten({CLIENTS[0]: sent}), {CLIENTS[0]: sent.tower})
    assert_equal(adapters(whole, {}), adapters({CLIENTS[0]: sent}, {}))


@pytest.mark.parametrize("name", ["", "../escaped", "0123456789ABCDEF", "0123456789abcde", "0123456789abcdef0"])
def test_a_client_without_a_proper_name_is_refused(name: str) -> None:
    """Names become keys of the checkpoint."""
    sent = AdapterUpdate("tiny", {}, {}, torch.zeros(1))
    for update in (adapters({name: sent}, {name: "tiny"}), adapters({}, {name: "tiny"})):
        with pytest.raises(RunError, match="without a proper name"):
            unpack_update(pack_update(update), [ADAPTERS])


def test_what_is_no_part_of_an_adapter_is_refused() -> None:
    sent = AdapterUpdate("tiny", {"x.P": torch.ones(1)}, {}, torch.zeros(1))
    with pytest.raises(RunError, match="or a tower"):
        unpack_update(pack_update(adapters({CLIENTS[0]: sent}, {})), [ADAPTERS])
    for parts in ({**sent.parts(), "gate": torch.zeros(())}, {"pq x.P": torch.ones(1)}, {}):
        with pytest.raises(RunError, match="neither P, Q, LoRA, logits nor its signature"):
            AdapterUpdate.of_parts("tiny", parts)
