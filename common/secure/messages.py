"""Defines the messages of secure sums, and how they are written and read.

`read` takes anything: it raises `SecureSumError` for what is not a message, and what it returns is written back the same.
Places are indices into the roster's members.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric import ec

from tessera.common.secure.encoding import LONGEST_TEXT, Reader, flags, header, number, text
from tessera.common.secure.groups import FEWEST, LARGEST, SMALLEST
from tessera.common.secure.keys import (
    EPOCH_SIGNATURE,
    KEY,
    NODE_KEY,
    SEED,
    SIGNATURE,
    is_signed,
    node_fingerprint,
    sign,
)
from tessera.common.secure.shares import NONCE, SHARE, TAG

EPOCH = 80
"""Asks for which keys are provided at once, at most."""
HASH = 32
_MOST_DEVICES = 2**20
_MOST_PEOPLE = 2**32 - 1
_MOST_EPOCHS = 2**32 - 1


def envelope_bytes(asks: int) -> int:
    """Bytes of an envelope: for each ask a share of the self-mask seed and one of the seed of the ask's key."""
    return NONCE + 2 * SHARE * asks + TAG


@dataclass(frozen=True)
class KeysRequest:
    """Server to device: announce keys for an epoch of a run."""

    run: str
    epoch: int
    asks: int = EPOCH

    def write(self) -> bytes:
        """As it travels."""
        return header(1) + self.fields()

    def fields(self) -> bytes:
        """Run, epoch and number of asks, as announcements hold them too."""
        return text(self.run) + number(self.epoch, 4) + number(self.asks, 1)

    @classmethod
    def read(cls, data: bytes) -> "KeysRequest":
        """Read what `write` wrote."""
        reader = Reader(data, "request for keys", 1)
        request = cls.take(reader)
        reader.end()
        return request

    @classmethod
    def take(cls, reader: Reader) -> "KeysRequest":
        """Read the fields from a message."""
        return cls(reader.text(), reader.number(4, 0, _MOST_EPOCHS, "the epoch"), reader.number(1, 1, EPOCH, "asks"))


@dataclass(frozen=True)
class Announcement:
    """Device to server, and to its group: the device's public keys for an epoch, signed by its node key over all of it."""

    request: KeysRequest
    people: int
    """How many people the device registered with."""
    keys: bytes = field(repr=False)
    """One X25519 key an ask."""
    envelope: bytes = field(repr=False)
    """The X25519 key that envelopes to it are sealed with."""
    signing: bytes = field(repr=False)
    """The Ed25519 key that it signs uploads with."""
    node: bytes = field(repr=False)
    """The node's public key."""
    signature: bytes = field(default=bytes(SIGNATURE), repr=False)

    def signed_by(self, key: ec.EllipticCurvePrivateKey) -> "Announcement":
        """The same, signed with the node's private key."""
        return replace(self, signature=sign(key, self.signed))

    @property
    def signed(self) -> bytes:
        """What the signature is over: all before it."""
        public = self.node + self.envelope + self.signing + self.keys
        return header(2) + self.request.fields() + number(self.people, 4) + public

    def is_signed(self) -> bool:
        """Whether its node signed it."""
        return is_signed(self.node, self.signed, self.signature)

    def key(self, ask: int) -> bytes:
        """Its public key for an ask."""
        return self.keys[ask * KEY : (ask + 1) * KEY]

    @cached_property
    def digest(self) -> bytes:
        """Its hash, by which groups are drawn."""
        return hashlib.sha256(self.write()).digest()

    @cached_property
    def fingerprint(self) -> str:
        """By what its node is called in messages to people."""
        return node_fingerprint(self.node)

    def write(self) -> bytes:
        """As it travels."""
        return self.signed + self.signature

    @classmethod
    def read(cls, data: bytes) -> "Announcement":
        """Read what `write` wrote; whether it is signed is another question."""
        reader = Reader(data, "announcement of keys", 2)
        request = KeysRequest.take(reader)
        people = reader.number(4, 1, _MOST_PEOPLE, "the number of people")
        node, envelope, signing = reader.take(NODE_KEY), reader.take(KEY), reader.take(KEY)
        keys, signature = reader.take(request.asks * KEY), reader.take(SIGNATURE)
        reader.end()
        return cls(request, people, keys, envelope, signing, node, signature)


@dataclass(frozen=True)
class Roster:
    """Server to device: who is in its group, in this order, and the hashes of all announcements, from which it was drawn."""

    everyone: tuple[bytes, ...] = field(repr=False)
    """Increasing."""
    size: int
    """About how large a group should be."""
    members: tuple[Announcement, ...]

    @cached_property
    def digest(self) -> bytes:
        """Its hash, to which every mask is bound."""
        return hashlib.sha256(self.write()).digest()

    @property
    def request(self) -> KeysRequest:
        """The run, epoch and number of asks it is for."""
        return self.members[0].request

    def name(self, place: int) -> str:
        """By what a member is called in messages to people."""
        return f"device {place + 1} of {len(self.members)} of the group (key {self.members[place].fingerprint})"

    def people(self, chosen: tuple[bool, ...]) -> int:
        """How many people are behind the chosen members."""
        return sum(member.people for member, one in zip(self.members, chosen, strict=True) if one)

    def write(self) -> bytes:
        """As it travels."""
        size = number(len(self.everyone), 4) + number(self.size, 1) + number(len(self.members), 1)
        members = [member.write() for member in self.members]
        return header(3) + size + b"".join(self.everyone) + b"".join(number(len(one), 2) + one for one in members)

    @classmethod
    def read(cls, data: bytes) -> "Roster":
        """Read what `write` wrote; whether a device should believe it is another question."""
        reader = Reader(data, "roster", 3)
        n = reader.number(4, FEWEST, _MOST_DEVICES, "the number of devices")
        size = reader.number(1, SMALLEST, LARGEST, "the size of groups")
        members = reader.number(1, FEWEST, LARGEST, "the number of members")
        everyone = tuple(reader.take(HASH) for _ in range(n))
        most = len(header(2)) + 1 + LONGEST_TEXT + 4 + 1 + 4 + NODE_KEY + 2 * KEY + EPOCH * KEY + SIGNATURE
        announcements = [
            Announcement.read(reader.take(reader.number(2, 1, most, "an announcement's length")))
            for _ in range(members)
        ]
        reader.end()
        return cls(everyone, size, tuple(announcements))


@dataclass(frozen=True)
class Shares:
    """Device to server: one envelope for each other member, and check values of the device's self-mask seeds."""

    roster: bytes = field(repr=False)
    sender: int
    asks: int
    checks: bytes = field(repr=False)
    envelopes: tuple[bytes, ...] = field(repr=False)
    """By the receiver's place; empty at the sender's own."""

    def check(self, ask: int) -> bytes:
        """The check value of an ask's self-mask seed."""
        return self.checks[ask * SEED : (ask + 1) * SEED]

    def write(self) -> bytes:
        """As it travels."""
        sizes = number(self.asks, 1) + number(len(self.envelopes), 1) + number(self.sender, 1)
        return header(4) + sizes + self.roster + self.checks + b"".join(self.envelopes)

    @classmethod
    def read(cls, data: bytes) -> "Shares":
        """Read what `write` wrote."""
        reader = Reader(data, "message of shares", 4)
        asks = reader.number(1, 1, EPOCH, "asks")
        n = reader.number(1, FEWEST, LARGEST, "the number of members")
        sender = reader.number(1, 0, n - 1, "the sender's place")
        roster, checks = reader.take(HASH), reader.take(asks * SEED)
        envelopes = tuple(b"" if place == sender else reader.take(envelope_bytes(asks)) for place in range(n))
        reader.end()
        return cls(roster, sender, asks, checks, envelopes)


@dataclass(frozen=True)
class Delivery:
    """Server to device: who of the roster shared its keys, and the envelopes that they sealed for this device."""

    roster: bytes = field(repr=False)
    receiver: int
    asks: int
    present: tuple[bool, ...]
    envelopes: tuple[bytes, ...] = field(repr=False)
    """By the sender's place; empty at the receiver's own and at those who are not present."""

    def write(self) -> bytes:
        """As it travels."""
        sizes = number(self.asks, 1) + number(len(self.present), 1) + number(self.receiver, 1)
        return header(5) + sizes + self.roster + flags(self.present) + b"".join(self.envelopes)

    @classmethod
    def read(cls, data: bytes) -> "Delivery":
        """Read what `write` wrote."""
        reader = Reader(data, "delivery of shares", 5)
        asks = reader.number(1, 1, EPOCH, "asks")
        n = reader.number(1, FEWEST, LARGEST, "the number of members")
        receiver = reader.number(1, 0, n - 1, "the receiver's place")
        roster, present = reader.take(HASH), reader.flags(n)
        size = envelope_bytes(asks)
        envelopes = tuple(reader.take(size) if there and at != receiver else b"" for at, there in enumerate(present))
        reader.end()
        return cls(roster, receiver, asks, present, envelopes)


def claim(roster: bytes, present: tuple[bool, ...], ask: int, place: int, context: bytes) -> bytes:
    """What a device signs with an upload: that it answered this ask, in this place among those present, in this context."""
    return b"upload" + roster + flags(present) + number(ask, 1) + number(place, 1) + context


@dataclass(frozen=True)
class MaskedUpload:
    """Device to server: its tensors in fixed point under its masks, in the layout's order. Without the masks, noise."""

    ask: int
    sender: int
    context: bytes = field(repr=False)
    """What the masks are bound to, so that the server can say who was told something else."""
    signature: bytes = field(repr=False)
    """Over `claim`, by which the others see that it answered, and to what."""
    words: bytes = field(repr=False)

    def write(self) -> bytes:
        """As it travels."""
        return header(6) + number(self.ask, 1) + number(self.sender, 1) + self.context + self.signature + self.words

    @classmethod
    def read(cls, data: bytes) -> "MaskedUpload":
        """Read what `write` wrote; whether the words fit the layout is seen when they are added up."""
        reader = Reader(data, "masked upload", 6)
        ask = reader.number(1, 0, EPOCH - 1, "the ask")
        sender = reader.number(1, 0, LARGEST - 1, "the sender's place")
        return cls(ask, sender, reader.take(HASH), reader.take(EPOCH_SIGNATURE), reader.rest())


@dataclass(frozen=True)
class UnmaskRequest:
    """Server to device: who answered an ask, with their word for it; the shares that are wanted follow from that."""

    roster: bytes = field(repr=False)
    ask: int
    context: bytes = field(repr=False)
    """Of all who answered."""
    signatures: tuple[bytes, ...] = field(repr=False)
    """Those of the uploads, by place; empty for who did not answer."""

    @property
    def answered(self) -> tuple[bool, ...]:
        """Who answered, by place."""
        return tuple(map(bool, self.signatures))

    def write(self) -> bytes:
        """As it travels."""
        start = header(7) + number(self.ask, 1) + number(len(self.signatures), 1) + self.roster + self.context
        return start + flags(self.answered) + b"".join(self.signatures)

    @classmethod
    def read(cls, data: bytes) -> "UnmaskRequest":
        """Read what `write` wrote."""
        reader = Reader(data, "request to unmask", 7)
        ask = reader.number(1, 0, EPOCH - 1, "the ask")
        n = reader.number(1, FEWEST, LARGEST, "the number of members")
        roster, context = reader.take(HASH), reader.take(HASH)
        signatures = tuple(reader.take(EPOCH_SIGNATURE) if one else b"" for one in reader.flags(n))
        reader.end()
        return cls(roster, ask, context, signatures)


@dataclass(frozen=True)
class UnmaskReply:
    """Device to server: for each member one share, of its self-mask seed if it answered and of its key's seed if not."""

    ask: int
    sender: int
    shares: tuple[bytes | None, ...] = field(repr=False)
    """None where the device holds none."""

    def write(self) -> bytes:
        """As it travels."""
        sizes = number(self.ask, 1) + number(len(self.shares), 1) + number(self.sender, 1)
        held = [share for share in self.shares if share is not None]
        return header(8) + sizes + flags([share is not None for share in self.shares]) + b"".join(held)

    @classmethod
    def read(cls, data: bytes) -> "UnmaskReply":
        """Read what `write` wrote."""
        reader = Reader(data, "reply to unmask", 8)
        ask = reader.number(1, 0, EPOCH - 1, "the ask")
        n = reader.number(1, FEWEST, LARGEST, "the number of members")
        sender = reader.number(1, 0, n - 1, "the sender's place")
        shares = tuple(reader.take(SHARE) if held else None for held in reader.flags(n))
        reader.end()
        return cls(ask, sender, shares)
