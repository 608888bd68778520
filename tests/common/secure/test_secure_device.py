"""What a device refuses to do in a secure sum, and what its server does."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec

from tessera.common.errors import PolicyRefused, SecureSumError, SecureSumRefused
from tessera.common.secure.device import SecureDevice
from tessera.common.secure.group import SecureGroup
from tessera.common.secure.keys import KEY
from tessera.common.secure.messages import Announcement, KeysRequest, Roster, UnmaskRequest
from tessera.common.secure.roster import Policy, check_announcement, make_rosters
from tests.support.secure_group import (
    EVERYBODY,
    LAYOUT,
    TASK,
    TENSORS,
    announce,
    collect,
    one_roster,
    share,
    upload,
    values,
)


def resigned(announcement: Announcement, **changes: bytes) -> Announcement:
    """An announcement that somebody else made of another's, and signed."""
    key = ec.generate_private_key(ec.SECP384R1())
    device = SecureDevice.announce(announcement.request, 5, key, EVERYBODY)
    return replace(device.announcement, **changes).signed_by(key)


def roster_of(*announcements: Announcement) -> Roster:
    (roster,) = make_rosters(announcements)
    return roster


def test_a_roster_without_the_devices_own_announcement_is_refused() -> None:
    own, *others = announce(5)
    with pytest.raises(SecureSumRefused, match="does not hold what this device announced"):
        own.share(roster_of(*(device.announcement for device in others)))


def test_a_roster_with_the_devices_keys_changed_is_refused() -> None:
    """A server that could announce for a device would hold its keys."""
    own, *others = announce(5)
    forged = replace(own.announcement, keys=others[0].announcement.keys[::-1])
    everyone = [forged, *(device.announcement for device in others)]
    roster = Roster(tuple(sorted(one.digest for one in everyone)), 16, tuple(everyone))
    with pytest.raises(SecureSumRefused, match="does not hold what this device announced"):
        own.share(roster)


def test_announcements_that_are_not_signed_by_their_node_are_refused_on_both_sides() -> None:
    own, other, third = announce(3)
    forged = replace(other.announcement, people=500)
    with pytest.raises(SecureSumError, match="is not signed by it"):
        check_announcement(forged, own.announcement.request)
    everyone = [own.announcement, forged, third.announcement]
    with pytest.raises(SecureSumRefused, match=r"announcement of device 2 of 3 .* is not signed by it"):
        own.share(Roster(tuple(sorted(one.digest for one in everyone)), 16, tuple(everyone)))


def test_a_group_is_shared_with_only_once_its_other_devices_are_admitted() -> None:
    (own, *others), asked = announce(4), []

    def admit(nodes: Sequence[bytes], people: int, beside: bytes) -> None:
        asked.append((set(nodes), people, beside))
        raise PolicyRefused("newcomers", "never seen")

    own.policy = Policy(admit, people=1)
    with pytest.raises(PolicyRefused):
        own.share(one_roster([own, *others])[0], b"a list")
    assert asked == [({device.announcement.node for device in others}, 20, b"a list")]
    assert own.roster is None


@pytest.mark.parametrize("part", ["keys", "envelope", "signing"])
def test_a_key_that_is_in_the_roster_twice_is_refused(part: str) -> None:
    own, other, third = announce(3)
    copied = resigned(own.announcement, **{part: getattr(other.announcement, part)})
    with pytest.raises(SecureSumRefused, match="a key is in the roster twice"):
        own.share(roster_of(own.announcement, other.announcement, third.announcement, copied))


def test_a_node_that_announces_twice_is_refused_on_both_sides() -> None:
    own, other, third = announce(3)
    key = ec.generate_private_key(ec.SECP384R1())
    twins = [SecureDevice.announce(own.announcement.request, 5, key, EVERYBODY).announcement for _ in range(2)]
    with pytest.raises(SecureSumError, match="announced keys twice"):
        roster_of(own.announcement, *twins)
    everyone = [own.announcement, other.announcement, third.announcement, *twins]
    with pytest.raises(SecureSumRefused, match="a key is in the roster twice"):
        own.share(Roster(tuple(sorted(one.digest for one in everyone)), 16, tuple(everyone)))


def test_a_group_that_is_not_drawn_is_refused() -> None:
    """A server would like to put a device among those that work with it."""
    devices = announce(20, asks=1)
    rosters = make_rosters([device.announcement for device in devices], 8)
    assert sorted(len(roster.members) for roster in rosters) == [10, 10]
    own = next(device for device in devices if device.announcement == rosters[0].members[0])
    chosen = (*rosters[0].members[:5], *rosters[1].members[5:])
    for roster in (replace(rosters[0], members=chosen), replace(rosters[0], members=rosters[0].members[::-1])):
        with pytest.raises(SecureSumRefused, match="somebody chose it"):
            own.share(roster)
    assert own.share(rosters[0]).sender == 0


def test_small_groups_and_few_people_are_refused() -> None:
    roster, (own, *_) = one_roster(announce(4, people=3))
    own.policy = replace(EVERYBODY, group=5)
    with pytest.raises(SecureSumRefused, match="the group has 4 devices; this device wants 5"):
        own.share(roster)
    own.policy = replace(EVERYBODY, people=13)
    with pytest.raises(SecureSumRefused, match="behind the group are 12 people; this device wants at least 13"):
        own.share(roster)


def test_another_runs_announcement_is_refused_on_both_sides() -> None:
    own, other, _ = announce(3)
    late = SecureDevice.announce(KeysRequest("run", 8, 2), 5, ec.generate_private_key(ec.SECP384R1()), EVERYBODY)
    everyone = (own.announcement, other.announcement, late.announcement)
    with pytest.raises(SecureSumError, match="announced keys for something else"):
        check_announcement(late.announcement, own.announcement.request)
    with pytest.raises(SecureSumRefused, match=r"device 3 of 3 .* for another run or epoch"):
        own.share(Roster(tuple(sorted(one.digest for one in everyone)), 16, everyone))


def test_a_second_roster_is_refused() -> None:
    first, second = announce(4), announce(3)
    roster, (own, *_) = one_roster(first)
    own.share(roster)
    with pytest.raises(SecureSumRefused, match="has its roster already"):
        own.share(one_roster([own, *second])[0])


def test_shares_for_another_or_too_few_are_refused() -> None:
    roster, devices = one_roster(announce(6))
    group = SecureGroup(roster)
    for device in devices:
        group.take_shares(device.share(roster))
    delivery = group.deliveries()[0]
    with pytest.raises(SecureSumRefused, match="of another roster, or for another device"):
        devices[1].receive(delivery)
    with pytest.raises(SecureSumRefused, match="3 of 6 devices shared their keys; this device wants at least 4"):
        devices[0].receive(replace(delivery, present=(True, True, True, False, False, False)))
    with pytest.raises(SecureSumRefused, match="own shares did not reach its group"):
        devices[0].receive(replace(delivery, present=(False, *delivery.present[1:])))
    devices[0].receive(delivery)
    with pytest.raises(SecureSumRefused, match="said before that others shared"):
        devices[0].receive(replace(delivery, present=(*delivery.present[:5], False)))


def test_an_envelope_that_was_tampered_with_is_named_and_done_without() -> None:
    roster, devices = one_roster(announce(4, asks=1))
    group = SecureGroup(roster)
    for device in devices:
        group.take_shares(device.share(roster))
    deliveries = group.deliveries()
    first = deliveries[0]
    swapped = (b"", first.envelopes[2], first.envelopes[1], first.envelopes[3][:-1] + b"\0")
    devices[0].receive(replace(first, envelopes=swapped))
    assert devices[0].unreadable == [roster.name(at) for at in (1, 2, 3)]
    for at in (1, 2, 3):
        devices[at].receive(deliveries[at])
    total = collect(group, devices, 0, {at: values(at) for at in range(4)})
    reply = devices[0].unmask(total.request())
    assert [share is None for share in reply.shares] == [False, True, True, True]


def test_an_ask_is_answered_once_and_not_after_it_was_unmasked() -> None:
    group, devices = share(announce(4, asks=2))
    first = upload(devices[0], 0, values(0))
    with pytest.raises(SecureSumRefused, match="ask 1 was answered or unmasked before"):
        upload(devices[0], 0, values(1))
    total = group.ask(0, TASK, TENSORS, LAYOUT)
    for message in (first, *(upload(devices[at], 0, values(at)) for at in (1, 2))):
        total.add(message)
    devices[3].unmask(total.request())
    with pytest.raises(SecureSumRefused, match="answered or unmasked before"):
        upload(devices[3], 0, values(3))


def test_values_that_do_not_fit_use_up_no_ask() -> None:
    _, devices = share(announce(3))
    with pytest.raises(SecureSumError, match="views: a value is above the bound of 3"):
        upload(devices[0], 0, values(0) | {"views": torch.full((2, 9, 4), 3.1)})
    upload(devices[0], 0, values(0))


def test_lists_that_are_not_of_the_roster_or_the_ask_are_refused() -> None:
    group, devices = share(announce(6, asks=1), silent=[5])
    own, total = devices[0], collect(group, devices, 0, {at: values(at) for at in range(5)})
    request = total.request()
    for strange, why in [
        (replace(request, roster=bytes(32)), "not of this device's roster"),
        (replace(request, signatures=(*request.signatures, b"")), "not of this device's roster"),
        (replace(request, signatures=(bytes(64),) * 6), "names a device that never shared its keys"),
        (
            replace(request, signatures=(*request.signatures[:3], b"", b"", b"")),
            "3 of 6 devices answered; this device wants at least 4",
        ),
        (replace(request, ask=1), "the epoch has 1 asks"),
    ]:
        with pytest.raises(SecureSumRefused, match=why):
            own.unmask(strange)


def test_one_list_an_ask_so_that_nobodys_seed_and_key_are_both_told() -> None:
    group, devices = share(announce(6))
    total = collect(group, devices, 0, {at: values(at) for at in range(6)})
    request = total.request()
    first = devices[0].unmask(request)
    assert devices[0].unmask(request) == first, "a request that comes again is answered the same"
    with pytest.raises(SecureSumRefused, match="ask 1 was unmasked for another list"):
        devices[0].unmask(replace(request, signatures=(*request.signatures[:5], b"")))


def test_a_list_of_those_who_did_not_answer_is_refused() -> None:
    """A server that could invent answers could have sums of few, or see whose key it likes."""
    group, devices = share(announce(4))
    total = collect(group, devices, 0, {at: values(at) for at in (1, 2, 3)})
    request = total.request()
    for forged in (bytes(64), request.signatures[1]):
        for device in devices:
            with pytest.raises(
                SecureSumRefused, match=r"device 1 of 4 .* did not answer ask 1, or was told something else"
            ):
                device.unmask(replace(request, signatures=(forged, *request.signatures[1:])))
    devices[1].unmask(request)
    other = collect(group, devices, 1, {at: values(at) for at in (1, 2, 3)})
    with pytest.raises(SecureSumRefused, match=r"device 2 of 4 .* did not answer ask 2, or was told something else"):
        devices[0].unmask(replace(request, ask=1, context=other.context))


def test_nobody_helps_to_unmask_a_device_that_was_told_something_else() -> None:
    """A server sends one device crafted tensors, or tells it of other devices, and adds its upload all the same."""
    group, devices = share(announce(5, asks=1))
    total = collect(group, devices, 0, {at: values(at) for at in range(4)})
    crafted = devices[4].mask(0, TASK, b"crafted tensors", values(4), LAYOUT, 0)
    with pytest.raises(SecureSumError, match=r"device 5 of 5 .* worked on other tensors"):
        total.add(crafted)
    with pytest.raises(SecureSumError, match=r"the upload of device 5 of 5 .* is not signed by it"):
        total.add(replace(crafted, context=total.context))
    request = total.request()
    mixed = replace(request, signatures=(*request.signatures[:4], crafted.signature))
    for device in devices[:4]:
        with pytest.raises(SecureSumRefused, match=r"device 5 of 5 .* was told something else"):
            device.unmask(mixed)
    with pytest.raises(SecureSumRefused, match="this device was told something else in ask 1"):
        devices[4].unmask(mixed)


def test_nobody_helps_to_unmask_a_device_that_was_told_of_others_present() -> None:
    roster, devices = one_roster(announce(6, asks=1))
    group = SecureGroup(roster)
    for device in devices:
        group.take_shares(device.share(roster))
    deliveries = group.deliveries()
    for at in range(1, 6):
        devices[at].receive(deliveries[at])
    few = (*deliveries[0].present[:4], False, False)
    devices[0].receive(replace(deliveries[0], present=few, envelopes=(*deliveries[0].envelopes[:4], b"", b"")))
    total = collect(group, devices, 0, {at: values(at) for at in range(1, 6)})
    signature = upload(devices[0], 0, values(0)).signature
    request = total.request()
    with pytest.raises(SecureSumRefused, match=r"device 1 of 6 .* was told something else"):
        devices[1].unmask(replace(request, signatures=(signature, *request.signatures[1:])))


def test_a_sum_over_too_few_people_or_devices_stays_masked() -> None:
    group, devices = share(announce(6, people=2))
    total = collect(group, devices, 0, {at: values(at) for at in range(4)})
    request = total.request()
    for policy, why in [
        (replace(EVERYBODY, people=9), "behind those who answered are 8 people; this device wants 9"),
        (replace(EVERYBODY, devices=5), "4 of 6 devices answered; this device wants at least 5"),
    ]:
        devices[0].policy = policy
        with pytest.raises(SecureSumRefused, match=why):
            devices[0].unmask(request)


def test_before_its_time_nothing_is_answered() -> None:
    (own, *_) = devices = announce(3)
    with pytest.raises(SecureSumRefused, match="shares have not come yet"):
        upload(own, 0, values(0))
    with pytest.raises(SecureSumRefused, match="shares have not come yet"):
        own.unmask(UnmaskRequest(bytes(32), 0, bytes(32), (bytes(64),) * 3))
    roster, _ = one_roster(devices)
    with pytest.raises(SecureSumError, match="have not been handed on"):
        SecureGroup(roster).ask(0, TASK, TENSORS, LAYOUT)


def test_a_public_key_that_makes_every_secret_zero_is_named() -> None:
    own, other, _ = announce(3, asks=1)
    weak = resigned(own.announcement, keys=bytes(KEY))
    with pytest.raises(
        SecureSumError, match=rf"key {re.escape(weak.fingerprint)} announced a key with which nobody can agree"
    ):
        check_announcement(weak, weak.request)
    third = SecureDevice(EVERYBODY, own.keys, weak)
    roster = roster_of(own.announcement, other.announcement, weak)
    devices = sorted((own, other, third), key=lambda device: roster.members.index(device.announcement))
    group = SecureGroup(roster)
    place = devices.index(third)
    for device in devices:
        if device is not third:
            group.take_shares(device.share(roster))
    deliveries = group.deliveries()
    assert place not in deliveries
    present = (True,) * 3
    own.receive(replace(deliveries[own.place], present=present))
    with pytest.raises(SecureSumError, match=rf"device {place + 1} of 3 .* nobody can agree on a secret"):
        upload(own, 0, values(0))


def test_the_server_takes_shares_and_uploads_once_and_in_time() -> None:
    roster, devices = one_roster(announce(4))
    group = SecureGroup(roster)
    for device in devices[:2]:
        group.take_shares(device.share(roster))
    with pytest.raises(SecureSumError, match="too late, or twice"):
        group.take_shares(devices[0].share(roster))
    with pytest.raises(
        SecureSumError, match=r"2 of 4 devices shared their keys, 3 must: not device 3 of 4 .*device 4 of 4"
    ):
        group.deliveries()
    group.take_shares(devices[2].share(roster))
    for place, delivery in group.deliveries().items():
        devices[place].receive(delivery)
    with pytest.raises(SecureSumError, match="too late, or twice"):
        group.take_shares(devices[3].share(roster))
    total = collect(group, devices, 0, {0: values(0), 1: values(1)})
    with pytest.raises(SecureSumError, match="2 of 4 devices answered, and a sum needs 3"):
        total.request()
    last = upload(devices[2], 0, values(2))
    with pytest.raises(SecureSumError, match="an upload of device 4, which did not share its keys"):
        total.add(replace(last, sender=3))
    with pytest.raises(SecureSumError, match="answered another ask"):
        total.add(replace(last, ask=1))
    with pytest.raises(SecureSumError, match=r"has 40\d bytes, its layout 368|bytes, its layout"):
        total.add(replace(last, words=last.words[:-1]))
    total.add(last)
    total.request()
    with pytest.raises(SecureSumError, match="after the sum was closed, or twice"):
        total.add(last)
