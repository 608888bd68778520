"""Which devices a device takes to be real: a server that invents some gets no sum of them and of a real one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.client.app import answer
from tessera.client.owner.known_keys import MOST_STRANGERS, KnownKeys, admit, read_keys, write_keys
from tessera.client.owner.ledger import Ledger
from tessera.client.owner.policy import Policy, write_policy
from tessera.client.recommendation import RecommendationClient
from tessera.common.errors import PolicyRefused, SecureSumError
from tessera.common.protocol.masked.key_list import KeyList
from tessera.common.protocol.masked.stages import StageMessage, pack_stage, unpack_stage
from tessera.common.secure.device import SecureDevice
from tessera.common.secure.messages import Announcement, KeysRequest
from tessera.common.secure.roster import make_rosters
from tessera.deploy.federation.certificates import make_node_key
from tessera.deploy.federation.operator_list import public_line
from tessera.deploy.provisioning.partition import partition
from tests.support.catalogues import small_dataset
from tests.support.secure_group import EVERYBODY

OPERATOR, ANOTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TODAY = datetime.now(UTC).date()


def names(*numbers: int) -> list[str]:
    return [f"SHA256:{number}" for number in numbers]


def refused(folder: Path, policy: Policy, others: Sequence[str], listed: KeyList | None = None) -> str:
    """The kind of refusal; "" where the group is let pass."""
    try:
        admit(folder, policy, others, listed)
    except PolicyRefused as refusal:
        return refusal.kind
    return ""


def signed(keys: Sequence[str], serial: int, days: int = 1, by: Ed25519PrivateKey = OPERATOR) -> KeyList:
    return KeyList.of(keys, serial, TODAY + timedelta(days=days)).signed_by(by)


# --- keys that are remembered


def test_strangers_are_few_or_the_owner_admits_them(tmp_path: Path) -> None:
    few, none, anybody = (Policy(newcomers=how) for how in ("few", "none", "any"))
    assert refused(tmp_path, few, names(1, 2)) == ""
    assert read_keys(tmp_path).admitted == set(names(1, 2))
    assert refused(tmp_path, few, names(1, 3)) == "newcomers"  # a third of three devices
    assert refused(tmp_path, few, names(1, 2, 3)) == ""  # a quarter of four
    assert refused(tmp_path, none, names(1, 2, 3)) == "newcomers"
    assert refused(tmp_path, anybody, names(7, 8, 9)) == ""
    assert refused(tmp_path, few, names(7, 8, 9)) == "newcomers"
    write_keys(tmp_path, read_keys(tmp_path).with_keys(names(7, 8), "owner"))
    assert refused(tmp_path, few, names(7, 8, 9)) == ""
    write_keys(tmp_path, read_keys(tmp_path).without(names(1, 2, 7, 8)))
    assert refused(tmp_path, few, names(1, 2)) == "newcomers"  # nor is anybody trusted on first use a second time


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=12, unique=True), min_size=1, max_size=12))
def test_no_order_of_groups_makes_strangers_a_third(tmp_path_factory: pytest.TempPathFactory, groups: list) -> None:
    """However slowly a server brings invented devices in: those of the first group stay more than two thirds."""
    folder, first = tmp_path_factory.mktemp("device"), set(groups[0])
    for group in groups:
        strangers = len(set(group) - first)
        assert (refused(folder, Policy(), names(*group)) == "") == (3 * strangers < len(group) + 1)


def test_the_list_that_came_with_the_first_group_is_believed_with_it(tmp_path: Path) -> None:
    """In a federation of several groups these are drawn anew each run."""
    assert refused(tmp_path, Policy(), names(1, 2), KeyList.of(names(1, 2, 3, 4))) == ""
    assert refused(tmp_path, Policy(newcomers="none"), names(3, 4), KeyList.of(names(3, 4, 5, 6))) == ""
    assert refused(tmp_path, Policy(newcomers="none"), names(4, 5)) == "newcomers"


def test_a_server_does_not_fill_the_disk_with_strangers(tmp_path: Path) -> None:
    refused(tmp_path, Policy(), names(1, 2))
    known = read_keys(tmp_path).with_keys(names(*range(3, 3000)))
    assert len(known.keys) == MOST_STRANGERS + 2
    assert known.admitted == set(names(1, 2))


# --- keys that an operator signed


def test_with_an_operator_there_are_none_but_the_signed_lists_devices(tmp_path: Path) -> None:
    policy = Policy(operator=public_line(OPERATOR) + " somebody@somewhere")
    assert refused(tmp_path, policy, names(1, 2)) == "operator-list"
    assert refused(tmp_path, policy, names(1, 2), KeyList.of(names(1, 2), 5, TODAY)) == "operator-list"
    assert refused(tmp_path, policy, names(1, 2), signed(names(1, 2), 5, by=ANOTHER)) == "operator-list"
    assert refused(tmp_path, policy, names(1, 2), signed(names(1, 2), 5, days=-1)) == "operator-list"
    assert refused(tmp_path, policy, names(1, 2), signed(names(1, 2), 5, days=0)) == ""
    assert refused(tmp_path, policy, names(1, 2, 3), signed(names(1, 2), 5)) == "unlisted"


def test_a_revoked_device_comes_back_by_no_older_list(tmp_path: Path) -> None:
    policy = Policy(operator=public_line(OPERATOR))
    old, new = signed(names(1, 2, 3), 1), signed(names(1, 2), 2)
    assert refused(tmp_path, policy, names(1, 2, 3), old) == ""
    assert refused(tmp_path, policy, names(1, 3), new) == "unlisted"
    assert refused(tmp_path, policy, names(1, 2, 3), old) == "operator-list"
    assert refused(tmp_path, policy, names(1, 2), new) == ""
    assert {name: key.admitted for name, key in read_keys(tmp_path).keys.items()} == dict(
        zip(names(1, 2, 3), ["operator", "operator", ""], strict=True)
    )
    assert refused(tmp_path, Policy(operator=public_line(ANOTHER)), names(1), signed(names(1), 1, by=ANOTHER)) == ""


@given(st.sampled_from(["keys", "serial", "until"]), st.data())
def test_a_list_is_signed_as_it_is(field: str, data: st.DataObject) -> None:
    listed = signed(names(1, 2), 3)
    assert KeyList.read(listed.write()) == listed
    assert listed.is_signed(public_line(OPERATOR))
    other = {"keys": ("SHA256:1",), "serial": data.draw(st.integers(4)), "until": "2999-01-01"}[field]
    assert not replace(listed, **{field: other}).is_signed(public_line(OPERATOR))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
)


@given(st.binary(max_size=80) | ANYTHING.map(lambda one: json.dumps(one).encode()))
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(SecureSumError, match="this is no list of devices"):
        KeyList.read(data)


# --- through the door of the device


class Surrounding:
    """A server that shows one real device a group of devices of its own making."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.epoch = folder, 0

    def say(self, stage: str, *messages: bytes) -> RecordDict:
        return answer(
            pack_stage(StageMessage(stage, "run", messages)), lambda settings: RecommendationClient(self.folder)
        )  # type: ignore[arg-type]

    def group(self, keys: Sequence[ec.EllipticCurvePrivateKey], listed: KeyList | None = None) -> str:
        """Why the device does not share its keys with devices of these keys; "" where it does."""
        self.epoch += 1
        request = KeysRequest("run", self.epoch, 2)
        (own,) = unpack_stage(self.say("keys", request.write()), "keys").messages
        others = [SecureDevice.announce(request, 50, key, EVERYBODY).announcement for key in keys]
        (roster,) = make_rosters([Announcement.read(own), *others])
        reply = self.say("roster", roster.write(), *([listed.write()] if listed else []))
        return str(reply.config_records["refusal"]["kind"]) if "refusal" in reply else ""


def test_a_device_shares_no_keys_with_devices_that_a_server_invented(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner reads whose they are, and what to do; the server hears which rule it was."""
    folder = partition(small_dataset(tmp_path / "small", 30), tmp_path / "devices", 10)[0]
    make_node_key(folder / "node.key")
    server = Surrounding(folder)
    real, invented = ([ec.generate_private_key(ec.SECP384R1()) for _ in range(4)] for _ in range(2))
    assert server.group(real) == ""
    assert server.group([*real, invented[0]]) == ""
    assert server.group([*invented, real[0]]) == "newcomers"
    assert "tessera device keys admit FINGERPRINT" in caplog.text
    (line,) = Ledger(folder).entries()[0]
    assert (line.kind, line.refused, line.devices) == ("group", "newcomers", 6)
    strangers = [name for name, key in read_keys(folder).keys.items() if not key.admitted]
    assert len(strangers) == 4
    assert all(name in line.reason for name in strangers)
    write_policy(folder, Policy(operator=public_line(OPERATOR)))
    assert server.group(invented, KeyList.of(strangers, 9, TODAY)) == "operator-list"
    assert server.group(invented, signed(strangers, 1)) == ""  # the operator's word is enough
    assert server.group(real, signed(strangers, 1)) == "unlisted"


def test_a_damaged_file_of_keys_refuses_groups(tmp_path: Path) -> None:
    folder = partition(small_dataset(tmp_path / "small", 30), tmp_path / "devices", 10)[0]
    make_node_key(folder / "node.key")
    (folder / "devices.json").write_text('{"keys": 3}')
    reply = Surrounding(folder)
    with pytest.raises(KeyError):  # no kind: nothing that a server should know
        reply.group([ec.generate_private_key(ec.SECP384R1()) for _ in range(4)])
    assert KnownKeys() == read_keys(tmp_path)
