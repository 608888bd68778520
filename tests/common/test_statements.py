"""What a server signs: what nobody else could have, and which two statements of its no honest server makes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tessera.client.owner.statements import admit, believe, read_key, read_statements
from tessera.common.errors import DataError, PolicyRefused, TesseraError
from tessera.common.protocol.messages import COUNTS, Ask
from tessera.common.protocol.signed.keys import key_name, public_half
from tessera.common.protocol.signed.statements import Statement, lies
from tessera.server.nodes.signing import Signer
from tests.common.test_hostile_bytes import TASK
from tests.support.hostile import fuzz

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
INPUTS = {COUNTS: torch.ones(6)}
PLAIN = replace(TASK, masking=None, also=())


def test_a_statement_is_of_its_key_and_of_all_that_is_asked() -> None:
    signed = Signer(KEY).sign(TASK, "v", INPUTS, "r")
    assert signed.is_signed()
    assert Statement.read(signed.write()) == signed
    assert len(signed.write()) < 1000
    changes = {"round": 3, "sent": 1, "tensors": "w", "place": (3, 0, 2), "key": public_half(OTHER)}
    for name, value in changes.items():
        assert not replace(signed, **{name: value}).is_signed()
    assert signed.covers(Statement.of(TASK, "v", INPUTS, "r"))
    again = TASK.without_last()
    assert again
    assert signed.covers(Statement.of(again, "v", INPUTS, "r"))  # what a node that failed is asked again
    assert not signed.covers(Statement.of(TASK, "w", INPUTS, "r"))
    assert not signed.covers(Statement.of(TASK, "v", {COUNTS: torch.zeros(6)}, "r"))
    assert not signed.covers(Statement.of(TASK, "v", INPUTS, "s"))
    assert not signed.covers(Statement.of(replace(TASK, selected=2), "v", INPUTS, "r"))


def test_an_honest_server_that_asks_again_and_goes_on_with_a_run_has_not_lied() -> None:
    first = Signer(KEY)
    said = [first.sign(replace(PLAIN, kind="power"), "", {"basis": torch.ones(6, n)}, "") for n in (1, 2)]
    said += [first.sign(replace(PLAIN, round=round), f"views {round}", INPUTS, "") for round in (1, 2)]
    said += [first.sign(replace(PLAIN, kind="evaluate", selected=n), "views 2", INPUTS, "") for n in (1, 2)]
    said += [first.sign(replace(TASK, round=3), "views 3", INPUTS, "r")]
    resumed = Signer(KEY)  # from a checkpoint, to other views, under new keys
    later = replace(TASK, masking=replace(TASK.masking, epoch=4))
    said += [resumed.sign(replace(PLAIN, round=2), "other views", INPUTS, ""), resumed.sign(later, "v", INPUTS, "q")]
    said += [Signer(OTHER).sign(PLAIN, "another server's", INPUTS, "")]
    assert not lies([*said, *said])


@pytest.mark.parametrize("task", [PLAIN, TASK])
def test_two_that_differ_where_they_must_not_are_proof(task: object) -> None:
    server = Signer(KEY)
    to_one, to_others = (server.sign(task, views, INPUTS, "r") for views in ("ours", "theirs"))  # type: ignore[arg-type]
    found = lies([to_others, to_one])
    assert (found[0].one, found[0].other) == (to_one, to_others)
    assert "round 2" in found[0].why
    forged = replace(to_others, tensors="forged")
    assert not lies([to_one, forged])


def test_a_server_cannot_say_that_it_began_anew_for_one_device_alone() -> None:
    first = Signer(KEY)
    told = [first.sign(PLAIN, "a", INPUTS, "")]
    told += [Signer(KEY).sign(PLAIN, "b", INPUTS, "")]
    assert not lies(told)
    told += [first.sign(replace(PLAIN, round=3), "c", INPUTS, "")]
    assert ["side by side" in why for _, _, why in lies(told)] == [True]


def test_a_device_goes_by_the_first_key_until_its_owner_says_otherwise(tmp_path: Path) -> None:
    server, stranger = Signer(KEY), Signer(OTHER)
    asked = Statement.of(PLAIN, "v", INPUTS, "")
    believe(tmp_path, None, asked)  # a server that does not sign, before any that does
    for signer in (server, server):
        believe(tmp_path, signer.sign(PLAIN, "v", INPUTS, ""), asked)
    refused = {
        "server-key": [None, stranger.sign(PLAIN, "v", INPUTS, "")],
        "statement": [server.sign(PLAIN, "w", INPUTS, ""), replace(server.sign(PLAIN, "v", INPUTS, ""), sent=1)],
    }
    for kind, statements in refused.items():
        for statement in statements:
            with pytest.raises(PolicyRefused, match="run run, round 2, train: ") as error:
                believe(tmp_path, statement, asked)
            assert error.value.kind == kind
    assert len(read_statements(tmp_path)) == 3  # what was signed and was a lie is kept
    with pytest.raises(DataError, match=r"SHA256:.* has"):
        admit(tmp_path, key_name(public_half(KEY)))
    admit(tmp_path, key_name(public_half(OTHER)))
    believe(tmp_path, stranger.sign(PLAIN, "v", INPUTS, ""), asked)
    assert read_key(tmp_path).admitted == "owner"


LINE = Signer(KEY).sign(replace(TASK, also=(Ask("evaluate", 1),)), "v", INPUTS, "r").write()


@pytest.mark.fuzzing
@fuzz(60)
@given(at=st.integers(0, len(LINE) - 1), put=st.text(max_size=6), cut=st.integers(0, 6))
def test_whatever_comes_as_a_statement_is_read_or_refused(at: int, put: str, cut: int) -> None:
    try:
        found = Statement.read(LINE[:at] + put + LINE[at + cut :])
    except TesseraError:
        return
    lies([found, Statement.read(LINE)])
    found.covers(Statement.of(TASK, "v", INPUTS, "r"))
