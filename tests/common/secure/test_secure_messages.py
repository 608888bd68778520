"""Messages of secure sums are read as they were written, and anything else is refused in words."""

from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.common.errors import SecureSumError
from tessera.common.secure import messages
from tessera.common.secure.device_state import load, save
from tessera.common.secure.messages import KeysRequest
from tests.support.secure_group import EVERYBODY, announce, collect, share, values
from tests.support.splits import tries


@cache
def examples() -> tuple[Any, ...]:
    """One message of each kind from a real sum, and a device's state."""
    group, devices = share(announce(4, asks=2), silent=[3])
    total = collect(group, devices, 1, {at: values(at) for at in range(3)})
    request = total.request()
    delivery = messages.Delivery(group.roster.digest, 0, 2, group.present, group._delivery(0).envelopes)
    mine = devices[0].announcement
    upload = messages.MaskedUpload(1, 2, total.context, total.signatures[2], b"words")
    reply = devices[0].unmask(request)
    return mine.request, mine, group.roster, group.shares[1], delivery, upload, request, reply


@cache
def state() -> bytes:
    """The state of a device that has all shares."""
    return save(share(announce(3, asks=1))[1][0])


every_message = pytest.mark.parametrize("index", range(8))


@every_message
def test_a_message_is_read_as_it_was_written(index: int) -> None:
    message = examples()[index]
    assert type(message).read(message.write()) == message


@every_message
@tries(60)
@given(data=st.data())
def test_a_message_that_was_changed_is_refused_or_another_message(index: int, data: st.DataObject) -> None:
    """Nothing but our own error, and two different byte strings are never read as the same message."""
    message = examples()[index]
    content = bytearray(message.write())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, min(60, len(content) - 1)), st.integers(0, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    changed = bytes(content[:cut]) + data.draw(st.sampled_from([b"", b"", b"\0"]))
    with suppress(SecureSumError):
        assert type(message).read(changed).write() == changed


@every_message
@tries(40)
@given(data=st.binary(max_size=300), marked=st.booleans())
def test_bytes_of_anybodys_are_refused(index: int, data: bytes, marked: bool) -> None:
    message = examples()[index]
    content = message.write()[:4] + data if marked else data
    with suppress(SecureSumError):
        assert type(message).read(content).write() == content


@tries(60)
@given(data=st.data())
def test_a_damaged_state_is_refused(data: st.DataObject) -> None:
    content = bytearray(state())
    assert save(load(bytes(content), EVERYBODY)) == content
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(SecureSumError):
        load(bytes(content[: data.draw(st.integers(0, len(content)))]), EVERYBODY)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "ends after 0 bytes"),
        (b"PK\x01\x01", "does not begin as one"),
        (b"TS\x09\x01", "is of version 9, this side speaks 1: install the same Tessera"),
        (b"TS\x01\x02", "does not begin as one"),
        (KeysRequest("run", 1, 3).write() + b"x", "1 bytes too many"),
        (KeysRequest("run", 1, 3).write()[:-1] + b"\x51", "asks is 81, not 1 to 80"),
        (b"TS\x01\x01\x02\xff\xff", "a name is not UTF-8"),
    ],
)
def test_an_error_says_what_is_wrong(content: bytes, why: str) -> None:
    with pytest.raises(SecureSumError, match=f"no request for keys of a secure sum: .*{why}"):
        KeysRequest.read(content)


def test_a_name_that_is_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(SecureSumError, match="longer than 200 bytes"):
        KeysRequest("x" * 201, 0).write()
