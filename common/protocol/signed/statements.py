"""Signs what a server asks, and on which views, with its key; and finds two statements that no honest server makes.

A statement goes along with each message that asks something. All devices that are asked the same get the same one:

    run, round      of what is asked
    begun, sent     when the server began with the run, or went on with it, and when it asked: microseconds since 1970, UTC
    asks            of each thing that is asked its kind, its round, and the SHA-256 of all that is said of it
    place           under masks the epoch and the number in it of each ask: no honest server uses one twice
    tensors         content hash of the views and whatever else all devices work on
    inputs          content hash of what came along about items
    roster          under masks a hash of all devices' announcements
    key, signature  Ed25519 (RFC 8032), of the server

Devices keep them. Under masks one that is sent other views than the rest is in no sum that can be read anyway; two statements
of one round that differ prove whose doing that was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tessera.common.errors import DataError
from tessera.common.protocol.messages import Task, header_of
from tessera.common.protocol.signed.keys import public_half
from tessera.common.protocol.tensors import Tensors, content_hash

if TYPE_CHECKING:
    from flwr.app import RecordDict

RECORD = "statement"
LONGEST = 10_000
"""Characters of a statement, at most: a device keeps them."""
_DOMAIN = b"tessera statement of a server, version 1: "


@dataclass(frozen=True)
class Statement:
    """What a server said that it asks."""

    run: str
    round: int
    begun: int
    sent: int
    asks: tuple[tuple[str, int, str], ...]
    place: tuple[int, ...]
    tensors: str
    inputs: str
    roster: str
    key: str = ""
    signature: str = ""

    @staticmethod
    def of(task: Task, shared: str, inputs: Tensors, roster: str, begun: int = 0, sent: int = 0) -> Statement:
        """What there is to sign of a task.

        Args:
            task: With how it is masked.
            shared: Content hash of the tensors that all devices are sent alike.
            inputs: The tensors that go along with the message.
            roster: Hash of all devices' announcements, "" without masks.
            begun: When the server began with the run.
            sent: When it asks.
        """
        asks = tuple((str(one.kind), one.round, _said(one)) for one in task.asks())
        place = (task.masking.epoch, *task.masking.asks) if task.masking else ()
        return Statement(task.run, task.round, begun, sent, asks, place, shared, content_hash(inputs), roster)

    def signed_by(self, key: Ed25519PrivateKey) -> Statement:
        """The same, signed."""
        named = replace(self, key=public_half(key))
        return replace(named, signature=key.sign(named._content()).hex())

    def is_signed(self) -> bool:
        """Whether the key that it names signed it."""
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key))
            key.verify(bytes.fromhex(self.signature), self._content())
        except (InvalidSignature, ValueError):
            return False
        return True

    def covers(self, asked: Statement) -> bool:
        """Whether it says all that a device was `asked`. A node that failed is asked a part of it again."""
        about = [(one.run, one.tensors, one.inputs, one.roster, one.place[:1]) for one in (self, asked)]
        return about[0] == about[1] and set(asked.numbered()) <= set(self.numbered())

    def numbered(self) -> list[tuple[tuple[str, int, str], int]]:
        """Its asks, each with its number in the epoch; without masks 0."""
        return list(zip(self.asks, self.place[1:] or [0] * len(self.asks), strict=True))

    def write(self) -> str:
        """As it travels, and as it is kept: a line."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def read(line: str | bytes) -> Statement:
        """Read what `write` wrote; whether to believe it is another question. Raises `DataError` for anything else."""
        try:
            if len(line) > LONGEST:
                raise ValueError("too long")
            return _typed(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DataError("what came as a server's statement is none") from None

    def _content(self) -> bytes:
        return _DOMAIN + replace(self, signature="").write().encode()


def _said(task: Task) -> str:
    """Hash of all that a task says; of its tensors the statement says those that all devices have alike."""
    return hashlib.sha256(json.dumps(header_of(replace(task, tensors="")), sort_keys=True).encode()).hexdigest()


def _typed(said: dict[str, Any]) -> Statement:
    """A statement from what may be anything. Raises `ValueError`, `TypeError` or `KeyError`."""
    values: dict[str, Any] = {one.name: said[one.name] for one in fields(Statement)}
    values["asks"] = tuple((kind, round, said) for kind, round, said in values["asks"])
    values["place"] = tuple(values["place"])
    numbers = [values["round"], values["begun"], values["sent"], *values["place"], *(one[1] for one in values["asks"])]
    texts = [
        value for name, value in values.items() if name in ("run", "tensors", "inputs", "roster", "key", "signature")
    ]
    texts += [text for kind, _, told in values["asks"] for text in (kind, told)]
    fits = not values["place"] or len(values["place"]) == len(values["asks"]) + 1
    if not all(type(one) is int for one in numbers) or not all(type(one) is str for one in texts) or not fits:
        raise ValueError("something else is in it")
    return Statement(**values)


def with_statement(content: RecordDict, statement: Statement | None) -> RecordDict:
    """Let a statement go along with a message."""
    from flwr.app import ConfigRecord

    if statement is not None:
        content[RECORD] = ConfigRecord({"said": statement.write()})
    return content


def statement_of(content: RecordDict) -> Statement | None:
    """What came along with a message; None where nothing did. Raises `DataError` for what is no statement."""
    record = content.config_records.get(RECORD)
    return None if record is None else Statement.read(str(record.get("said", "")))


def roster_hash(everyone: Iterable[bytes]) -> str:
    """One hash of all devices' announcements, by the hashes of each."""
    return hashlib.sha256(b"".join(sorted(everyone))).hexdigest()


# --- what two statements prove


class Lie(NamedTuple):
    """Two statements of one key that no honest server makes, and what is wrong with them."""

    one: Statement
    other: Statement
    why: str


def lies(statements: Sequence[Statement]) -> list[Lie]:
    """What statements prove against who signed them, of one device or of several. Those that nobody signed prove nothing."""
    valid = sorted({one for one in statements if one.is_signed()}, key=lambda one: (one.sent, one.signature))
    return [*_differing(valid), *_overlapping(valid)]


def _differing(statements: Sequence[Statement]) -> Iterator[Lie]:
    """Two that say different things of what an honest server asks once: all that is asked at a time, an ask under masks, and
    a round's training from one beginning of the server to its end."""
    seen: dict[tuple[object, ...], tuple[object, Statement]] = {}
    found: dict[tuple[Statement, Statement], list[str]] = {}
    for one in statements:
        for place, said, why in _places(one):
            before, earlier = seen.setdefault((one.key, one.run, *place), (said, one))
            if before != said:
                found.setdefault((earlier, one), []).append(why)
    yield from (Lie(*pair, "; ".join(whys)) for pair, whys in found.items())


def _places(one: Statement) -> Iterator[tuple[tuple[object, ...], object, str]]:
    """What a statement is about, each with what it says there, and what is wrong where another says something else."""
    work = one.tensors, one.inputs, one.roster
    yield ("sent", one.begun, one.sent), (one.asks, one.place, work), "two asks at the same moment that differ"
    for (kind, round, said), number in one.numbered():
        if one.place:
            what = f"{kind} of round {round}: two asks under the same masks that differ"
            yield ("masked", one.place[0], number), (kind, round, said, work), what
        elif kind == "train":
            yield ("train", one.begun, round), one.tensors, f"training of round {round} on different views"


def _overlapping(statements: Sequence[Statement]) -> Iterator[Lie]:
    """Two of one run of which the later beginning was before the end of the earlier one: a server that goes on with a run was
    stopped before."""
    last: dict[tuple[str, str, int], Statement] = {}
    for one in statements:
        last[one.key, one.run, one.begun] = one
    first: dict[tuple[str, str, int], Statement] = {}
    for one in reversed(statements):
        first[one.key, one.run, one.begun] = one
    for (key, run, begun), earlier in last.items():
        for (other_key, other_run, later), one in first.items():
            if (key, run) == (other_key, other_run) and begun < later <= earlier.sent:
                yield Lie(earlier, one, "the run was begun again before it was stopped: two of it go on side by side")
