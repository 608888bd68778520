"""The parts that secure sums are made of: fixed point, groups, keys and shares."""

from collections import Counter

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from tessera.common.errors import SecureSumError
from tessera.common.secure.fixed_point import Spec, add, from_words, pack, to_words, unpack, zeros
from tessera.common.secure.groups import draw_groups, group_sizes
from tessera.common.secure.keys import EpochKeys, node_key_bytes
from tessera.common.secure.masks import add_pair_mask, add_self_mask, ask_context
from tessera.common.secure.shares import reconstruct, seal, split, threshold, unseal
from tests.support.splits import tries


@tries(60)
@given(
    bound=st.floats(1e-6, 1e9),
    n=st.integers(1, 64),
    kind=st.sampled_from(["table", "scalar", "short"]),
    seed=st.integers(0, 10**6),
)
def test_no_sum_overflows_and_its_error_is_below_a_step_a_device(bound: float, n: int, kind, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Even where all devices are at the bound, on the same side."""
    spec = Spec("x", (50,), kind, bound)
    generator = torch.Generator().manual_seed(seed)
    total, exact = zeros([spec]), torch.zeros(50, dtype=torch.float64)
    for device in range(n):
        value = (torch.rand(50, generator=generator, dtype=torch.float64) * 2 - 1) * bound
        value[0], value[1] = bound, -bound
        exact += value
        add(total, unpack(pack(to_words({"x": value}, [spec], n, device), [spec]), [spec]))
    found = from_words(total, [spec], n)["x"]
    step = 1 / spec.scale(n)
    assert (found - exact).abs().max() <= n * step + 1e-12 * n * bound
    assert n * step <= {"table": 1e-6, "scalar": 1e-12, "short": 4e-5}[kind] * n * n * bound


def test_rounding_is_right_on_average_and_not_the_same_for_all() -> None:
    spec = Spec("x", (20_000,), "table", 2.0**20)
    step = 2.0 ** -spec.exponent(64)
    value = torch.full((20_000,), 0.3 * step, dtype=torch.float64)
    rounded = [from_words(to_words({"x": value}, [spec], 64, salt), [spec], 64)["x"] / step for salt in (1, 2)]
    for one in rounded:
        assert abs(float(one.mean()) - 0.3) < 4 * (0.21 / 20_000) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack(rounded))[0, 1])) < 0.03


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.tensor([1.0, float("nan")]), "gradient: a value is above the bound of 1, or not finite"),
        (torch.tensor([1.0, float("inf")]), "gradient: a value is above"),
        (torch.tensor([0.0, -1.01]), "gradient: a value is above"),
        (torch.zeros(3), r"gradient: its shape is \(3,\), the layout says \(2,\)"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_the_tensor(value: torch.Tensor, why: str) -> None:
    with pytest.raises(SecureSumError, match=why):
        to_words({"gradient": value}, [Spec("gradient", (2,), "table", 1.0)], 3, 0)


def test_tensors_are_those_of_the_layout_each_once() -> None:
    spec = Spec("x", (), "scalar", 1.0)
    for tensors, layout, name in [({}, [spec], "x"), ({"x": torch.ones(()), "y": torch.ones(())}, [spec], "y")]:
        with pytest.raises(SecureSumError, match=f"{name}: not once in the upload and once in its layout"):
            to_words(tensors, layout, 3, 0)
    with pytest.raises(SecureSumError, match="x, x: not once"):
        to_words({"x": torch.ones(())}, [spec, spec], 3, 0)
    with pytest.raises(SecureSumError, match="x: its bound is inf"):
        Spec("x", (), "scalar", float("inf"))


@tries(100)
@given(n=st.integers(16, 3000), size=st.integers(8, 64))
def test_groups_are_even_and_neither_small_nor_large(n: int, size: int) -> None:
    sizes = group_sizes(n, size)
    assert sum(sizes) == n
    assert min(sizes) >= 8
    assert max(sizes) <= 64
    assert max(sizes) - min(sizes) <= 1


def test_few_devices_are_one_group_and_two_are_none() -> None:
    assert [group_sizes(n) for n in (3, 8, 15)] == [[3], [8], [15]]
    with pytest.raises(SecureSumError, match="at least 3 devices, and there are 2"):
        group_sizes(2)
    with pytest.raises(SecureSumError, match="8 to 64 devices, not 65"):
        group_sizes(100, 65)


def test_who_is_with_whom_is_for_everybody_to_draw_and_for_nobody_to_choose() -> None:
    """The order of announcements is nothing, and one that is new changes all groups."""
    everyone = [bytes([at]) * 32 for at in range(40)]
    groups = draw_groups(everyone)
    assert draw_groups(everyone[::-1]) == groups
    assert Counter(one for group in groups for one in group) == Counter(everyone)
    other = draw_groups([*everyone[:-1], bytes([99]) * 32])
    assert not {frozenset(group) for group in groups} & {frozenset(group) for group in other}


@tries(30)
@given(n=st.integers(3, 12), data=st.data())
def test_two_thirds_of_the_shares_are_a_secret_and_fewer_are_none(n: int, data: st.DataObject) -> None:
    secrets = [EpochKeys.draw().seed for _ in range(2)]
    pieces = split(secrets, n)
    holders = data.draw(st.permutations(range(n)))[: threshold(n)]
    for index, secret in enumerate(secrets):
        shares = {holder: pieces[holder][index * 16 : index * 16 + 16] for holder in holders}
        assert reconstruct(shares, threshold(n), secret.__eq__, "it") == (secret, set())
        shares.pop(holders[0])
        with pytest.raises(SecureSumError, match=r"it: .* shares came of the"):
            reconstruct(shares, threshold(n), secret.__eq__, "it")
        if len(shares) > 1:
            with pytest.raises(SecureSumError, match="fit together"):
                reconstruct(shares, len(shares), secret.__eq__, "it")


@pytest.mark.parametrize("n", range(3, 65))
def test_fewer_than_a_third_that_help_the_server_isolate_nobody(n: int) -> None:
    """Counted in shares. A server lies to everybody about who is present and who answered; each honest device gives one share
    a member, and of keys no more than its list leaves out."""
    needed, hostile = threshold(n), (n - 1) // 3
    assert 2 * needed > n + hostile, "one device's seed and key need more shares than there are"
    for present in range(needed, n + 1):
        keys = (present - 1 - hostile) * (needed - hostile)
        assert keys > (present - hostile) * (present - needed), "the keys of all others, for one device's upload"


def test_an_envelope_opens_with_its_secret_at_its_place_alone() -> None:
    secret, other = bytes(32), bytes(31) + b"\1"
    envelope = seal(secret, b"1 to 2", b"content")
    assert unseal(secret, b"1 to 2", envelope) == b"content"
    assert unseal(other, b"1 to 2", envelope) is None
    assert unseal(secret, b"2 to 1", envelope) is None
    assert unseal(secret, b"1 to 2", envelope[:-1] + bytes([envelope[-1] ^ 1])) is None
    assert seal(secret, b"1 to 2", b"content") != envelope, "a nonce of its own each time"


def test_keys_of_an_epoch_are_all_different() -> None:
    first, second = EpochKeys.draw(), EpochKeys.draw()
    derived = [
        one for keys in (first, second) for ask in range(80) for one in (keys.ask_seed(ask), keys.self_mask_seed(ask))
    ]
    assert len({first.seed, second.seed, *derived}) == 322


def test_a_node_key_of_another_curve_is_refused() -> None:
    with pytest.raises(SecureSumError, match="of curve secp256r1; secure sums need P-384"):
        node_key_bytes(ec.generate_private_key(ec.SECP256R1()).public_key())


LAYOUT = (Spec("big", (70_001,), "table", 1.0), Spec("empty", (0, 3), "table", 1.0), Spec("sum", (3,), "scalar", 1.0))


def test_pair_masks_cancel_and_self_masks_come_off() -> None:
    """Streams longer than what is drawn at once, and empty ones, too."""
    words = zeros(LAYOUT)
    add_pair_mask(words, LAYOUT, b"s" * 32, (3, 8), b"context", 1)
    add_self_mask(words, LAYOUT, b"b" * 16, b"context", 1)
    assert len(np.unique(words["big"])) > 69_900
    add_pair_mask(words, LAYOUT, b"s" * 32, (8, 3), b"context", 1)
    add_self_mask(words, LAYOUT, b"b" * 16, b"context", -1)
    assert not any(value.any() for value in words.values())


def test_a_stream_depends_on_context_pair_and_tensor() -> None:
    def drawn(pair: tuple[int, int], context: bytes, spec: Spec) -> bytes:
        words = zeros([spec])
        add_pair_mask(words, [spec], b"s" * 32, pair, context, 1)
        return pack(words, [spec])[:64]

    spec = Spec("x", (16,), "table", 1.0)
    others = [Spec("y", (16,), "table", 1.0), Spec("x", (4, 4), "table", 1.0), Spec("x", (16,), "scalar", 1.0)]
    cases = [
        ((1, 2), b"c", spec),
        ((1, 3), b"c", spec),
        ((1, 2), b"d", spec),
        *(((1, 2), b"c", other) for other in others),
    ]
    assert len({drawn(*case) for case in cases}) == len(cases)


def test_a_context_depends_on_all_that_devices_must_agree_on() -> None:
    told = {"task": b"t", "tensors": b"h", "roster": b"r", "present": (True, True), "ask": 1, "layout": LAYOUT}
    other = {"task": b"th", "tensors": b"", "roster": b"q", "present": (True, False), "ask": 2}
    wider = (Spec("big", (70_001,), "table", 2.0), *LAYOUT[1:])
    contexts = {ask_context(**told)} | {ask_context(**told | {name: one}) for name, one in other.items()}  # type: ignore[arg-type]
    contexts |= {ask_context(**told | {"task": b"th", "tensors": b""}), ask_context(**told | {"layout": wider})}  # type: ignore[arg-type]
    assert len(contexts) == 8
