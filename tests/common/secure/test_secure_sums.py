"""Sums under masks are the plain sums, whoever is lost, and nobody can read a single upload."""

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tessera.common.errors import SecureSumError, SecureSumRefused
from tessera.common.secure.device import SecureDevice
from tessera.common.secure.device_state import load, save
from tessera.common.secure.fixed_point import Spec, add, to_words, unpack, zeros
from tessera.common.secure.group import SecureGroup
from tessera.common.secure.keys import ask_key
from tessera.common.secure.masks import add_self_mask, ask_context
from tessera.common.secure.messages import UnmaskReply
from tessera.common.secure.shares import threshold
from tests.support.secure_group import (
    EVERYBODY,
    LAYOUT,
    TASK,
    TENSORS,
    announce,
    check_sum,
    collect,
    one_roster,
    share,
    unmask,
    upload,
    values,
)
from tests.support.splits import tries


@pytest.mark.parametrize("lost", [0, 1, 3], ids=["none lost", "10% lost", "30% lost"])
@pytest.mark.parametrize("stage", ["after keys", "before upload", "before unmask"])
def test_sums_under_masks_are_plain_sums(lost: int, stage: str) -> None:
    n, gone = 10, range(lost)
    group, devices = share(announce(n), silent=gone if stage == "after keys" else ())
    given = {at: values(at) for at in range(n) if stage == "before unmask" or at not in gone}
    total = collect(group, devices, 0, given)
    found = unmask(total, devices, [at for at in range(n) if at not in gone])
    check_sum(found, given, sum(group.present))
    assert found.people == 5 * len(given)
    assert found.wrong == ()


@tries(12)
@given(data=st.data(), n=st.integers(3, 9))
def test_any_devices_may_be_lost_at_any_stage(data: st.DataObject, n: int) -> None:
    """As long as two thirds of the group are left, the sum is right; with fewer, there is none."""
    places = list(range(n))
    silent = data.draw(st.sets(st.sampled_from(places), max_size=n - threshold(n)), label="lost after keys")
    group, devices = share(announce(n, asks=1), silent)
    there = [at for at in places if at not in silent]
    answering = data.draw(st.sets(st.sampled_from(there)), label="answer")
    helping = data.draw(st.sets(st.sampled_from(there)), label="help to unmask")
    given = {at: values(at) for at in answering}
    total = collect(group, devices, 0, given)
    if min(len(answering), len(helping)) < threshold(n):
        with pytest.raises(SecureSumError):
            unmask(total, devices, helping)
    else:
        check_sum(unmask(total, devices, helping), given, len(there))


def test_an_epoch_has_many_sums_and_devices_may_stop_and_go_on() -> None:
    """Others are lost in each ask, and devices' parts are saved and read between any two messages."""
    group, devices = share(announce(5, asks=4))
    for ask in range(4):
        devices = [load(save(device), EVERYBODY) for device in devices]
        given = {at: values(ask * 10 + at) for at in range(5) if at != ask}
        total = collect(group, devices, ask, given)
        devices = [load(save(device), EVERYBODY) for device in devices]
        check_sum(unmask(total, devices, range(1, 5)), given, 5)
    with pytest.raises(SecureSumRefused, match="4 asks, and this is number 5"):
        upload(devices[0], 4, values(0))


def test_a_device_that_stopped_between_its_shares_and_the_others_goes_on() -> None:
    devices = announce(3)
    roster, devices = one_roster(devices)
    group = SecureGroup(roster)
    for place, device in enumerate(devices):
        group.take_shares(device.share(roster))
        devices[place] = load(save(device), EVERYBODY)
        assert devices[place].share(roster) == group.shares[place], "the same shares, not others of the same secrets"
    for place, delivery in group.deliveries().items():
        devices[place].receive(delivery)
    given = {at: values(at) for at in range(3)}
    check_sum(unmask(collect(group, devices, 0, given), devices, range(3)), given, 3)


def test_a_masked_upload_is_uniform_and_no_two_share_a_stream() -> None:
    """Everything is zero, so that what is uploaded is the masks."""
    layout = (Spec("a", (200, 50), "table", 1.0), Spec("b", (200, 50), "table", 1.0), Spec("c", (5000,), "scalar", 1.0))
    nothing = {spec.name: torch.zeros(spec.shape) for spec in layout}
    _, devices = share(announce(3, asks=3))
    asked = [(0, TASK, TENSORS), (1, TASK, TENSORS), (2, b"another task", TENSORS)]
    streams = [
        np.frombuffer(device.mask(ask, task, tensors, nothing, layout, 0).words, np.uint8).reshape(3, -1)
        for device in devices
        for ask, task, tensors in asked
    ]
    drawn = np.concatenate(streams)
    for stream in drawn:
        assert stats.chisquare(np.bincount(stream, minlength=256)).pvalue > 1e-6
    bits = np.unpackbits(drawn, axis=1) * 2.0 - 1
    alike = np.corrcoef(bits) - np.eye(len(bits))
    assert np.abs(alike).max() < 6 / np.sqrt(bits.shape[1])


def test_devices_that_were_told_different_things_have_masks_that_do_not_cancel() -> None:
    """One is sent other tensors. Even with all self masks known, what the server adds up is noise."""
    layout = (Spec("x", (5000,), "table", 1.0),)
    nothing = {"x": torch.zeros(5000)}
    for tensors, cancels in [(TENSORS, True), (b"crafted", False)]:
        _, devices = share(announce(3, asks=1))
        total = zeros(layout)
        for device in devices:
            told = tensors if device is devices[2] else TENSORS
            message = device.mask(0, TASK, told, nothing, layout, 0)
            add(total, unpack(message.words, layout))
            add_self_mask(total, layout, device.keys.self_mask_seed(0), message.context, -1)
        assert cancels == (not total["x"].any())
        assert cancels or stats.chisquare(np.bincount(total["x"].view(np.uint8), minlength=256)).pvalue > 1e-6


@pytest.mark.parametrize("answered", [True, False], ids=["of a self mask", "of a key"])
@pytest.mark.parametrize("liars", [{0}, {1, 4}, {0, 2, 6}])
def test_wrong_shares_are_left_out_and_named(answered: bool, liars: set[int]) -> None:
    n = 10
    group, devices = share(announce(n, asks=1))
    given = {at: values(at) for at in range(n) if at != 9 or answered}
    total = collect(group, devices, 0, given)
    request = total.request()
    for at, device in enumerate(devices):
        reply = device.unmask(request)
        wrong = tuple(None if one is None else bytes([one[0] ^ (at + 1)]) + one[1:] for one in reply.shares)
        total.take(UnmaskReply(0, at, wrong) if at in liars else reply)
    found = total.result()
    check_sum(found, given, n)
    assert found.wrong == tuple(group.roster.name(at) for at in sorted(liars))


def test_shares_that_are_too_few_or_all_wrong_are_an_error_that_names_whose_they_are() -> None:
    group, devices = share(announce(5, asks=1))
    total = collect(group, devices, 0, {at: values(at) for at in range(4)})
    request = total.request()
    replies = [device.unmask(request) for device in devices]
    for reply in replies[:3]:
        total.take(reply)
    assert total.missing == 1
    with pytest.raises(SecureSumError, match=r"self mask of device 1 of 5 .*3 shares came of the 4"):
        total.result()
    total.take(UnmaskReply(0, 3, (*replies[3].shares[:4], bytes(16))))
    assert total.missing == 0
    with pytest.raises(
        SecureSumError, match=r"the key of device 5 of 5 .* no 4 fit together; they are of \[0, 1, 2, 3\]"
    ):
        total.result()


def test_what_is_secret_shows_in_no_representation() -> None:
    group, devices = share(announce(3))
    total = collect(group, devices, 0, {at: values(at) for at in range(3)})
    reply = devices[0].unmask(total.request())
    secrets = [devices[0].keys.seed, *devices[0].held.values(), *(one for one in reply.shares if one)]
    shown = "".join(map(repr, [devices[0], devices[0].keys, reply, group.shares[0], total, group, group.roster]))
    assert not [
        one for one in secrets if repr(one)[2:-1] in shown or one.hex() in shown or repr(one[:8])[2:-1] in shown
    ]


def naive_upload(
    device: SecureDevice, ask: int, given: dict[str, torch.Tensor], others: list[SecureDevice]
) -> list[int]:
    """Bonawitz et al., Section 6.1, number by number: y_u = x_u + PRG(b_u) + sum of PRG(s_uv), v after u, less those before."""

    def stream(secret: bytes, label: bytes, spec: Spec) -> list[int]:
        info = b"tessera secure sums, version 1: " + bytes([len(label)]) + label + context + spec.describe()
        key, width = HKDF(SHA256(), 32, None, info).derive(secret), spec.dtype.itemsize
        drawn = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(spec.size * width))
        return [int.from_bytes(drawn[at : at + width], "little") for at in range(0, len(drawn), width)]

    u, roster = device.place, device.roster
    assert roster is not None
    context = ask_context(TASK, TENSORS, roster.digest, device.present, ask, LAYOUT)
    plain_words, found = to_words(given, LAYOUT, sum(device.present), u), []
    for spec in LAYOUT:
        y = [
            int(x) + b
            for x, b in zip(
                plain_words[spec.name], stream(device.keys.self_mask_seed(ask), b"self mask", spec), strict=True
            )
        ]
        for other in others:
            v = other.place
            s_uv = ask_key(other.keys.ask_seed(ask)).exchange(ask_key(device.keys.ask_seed(ask)).public_key())
            mask = stream(s_uv, b"pair mask" + bytes(sorted((u, v))), spec)
            y = [one + m if u < v else one - m for one, m in zip(y, mask, strict=True)]
        found += [one % 2 ** (8 * spec.dtype.itemsize) for one in y]
    return found


@pytest.mark.parametrize("place", range(4))
def test_what_a_device_uploads_is_what_the_paper_says(place: int) -> None:
    _, devices = share(announce(5), silent=[4])
    others = [device for device in devices[:4] if device.place != place]
    words = unpack(upload(devices[place], 1, values(place)).words, LAYOUT)
    uploaded = [int(word) for spec in LAYOUT for word in words[spec.name]]
    assert uploaded == naive_upload(devices[place], 1, values(place), others)
