"""Takes part in secure sums on a device: announces keys, shares them out, masks uploads and helps to unmask sums.

A `SecureDevice` lives for one epoch. Save what `save` returns (it is secret) before anything that a method returned is sent:
a device that forgot that it answered could answer twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor

from tessera.common.errors import SecureSumRefused
from tessera.common.secure.fixed_point import Layout, Words, add, pack, to_words
from tessera.common.secure.keys import (
    EpochKeys,
    agree,
    ask_key,
    check_value,
    is_signed_in_epoch,
    node_key_bytes,
    public_bytes,
    sign_in_epoch,
)
from tessera.common.secure.masks import add_pair_mask, add_self_mask, ask_context
from tessera.common.secure.messages import (
    Announcement,
    Delivery,
    KeysRequest,
    MaskedUpload,
    Roster,
    Shares,
    UnmaskReply,
    UnmaskRequest,
    claim,
)
from tessera.common.secure.roster import Policy, check_roster
from tessera.common.secure.shares import SHARE, seal, split, threshold, unseal


@dataclass(repr=False)
class SecureDevice:
    """A device's part in the secure sums of one epoch."""

    policy: Policy
    keys: EpochKeys
    announcement: Announcement
    """To be sent first."""
    roster: Roster | None = None
    place: int = 0
    shares: Shares | None = None
    """What this device sent to its group: kept until the others' came."""
    present: tuple[bool, ...] = ()
    held: dict[int, bytes] = field(default_factory=dict)
    """By place, the shares of that device's secrets: first of all self-mask seeds, then of all keys' seeds."""
    masked: dict[int, bytes] = field(default_factory=dict)
    """By ask, the context in which this device answered it."""
    unmasked: dict[int, tuple[bool, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"SecureDevice({self.announcement.request}, secrets hidden)"

    @classmethod
    def announce(
        cls, request: KeysRequest, people: int, node_key: ec.EllipticCurvePrivateKey, policy: Policy
    ) -> "SecureDevice":
        """Draw the keys of an epoch; `people` is how many the device registered with, `node_key` what it proves itself with."""
        keys = EpochKeys.draw()
        public = b"".join(public_bytes(ask_key(keys.ask_seed(ask))) for ask in range(request.asks))
        envelope, signing = public_bytes(keys.envelope_key()), public_bytes(keys.signing_key())
        unsigned = Announcement(request, people, public, envelope, signing, node_key_bytes(node_key.public_key()))
        return cls(policy, keys, unsigned.signed_by(node_key))

    @property
    def asks(self) -> int:
        """How many asks the epoch has."""
        return self.announcement.request.asks

    @property
    def unreadable(self) -> list[str]:
        """Who sent this device an envelope that it could not open: it holds no shares of them."""
        return [self._roster().name(at) for at, there in enumerate(self.present) if there and at not in self.held]

    def share(self, roster: Roster, beside: bytes = b"") -> Shares:
        """Check the roster, and share this epoch's secrets out among it. The same roster again gives the same shares.

        `beside` is what came along with it. Raises `SecureSumRefused` for a roster that is not to be believed, and for a
        second one.
        """
        if self.roster is not None:
            if self.roster.digest != roster.digest or self.shares is None:
                raise SecureSumRefused("this epoch has its roster already, and its keys serve no other")
            return self.shares
        self.place = check_roster(roster, self.announcement, self.policy, beside)
        secrets = [self.keys.self_mask_seed(ask) for ask in range(self.asks)]
        checks = b"".join(map(check_value, secrets))
        pieces = split(secrets + [self.keys.ask_seed(ask) for ask in range(self.asks)], len(roster.members))
        self.roster, self.held[self.place] = roster, pieces[self.place]
        envelopes = tuple(
            b"" if at == self.place else seal(self._envelope_secret(at), self._way(self.place, at), piece)
            for at, piece in enumerate(pieces)
        )
        self.shares = Shares(roster.digest, self.place, self.asks, checks, envelopes)
        return self.shares

    def receive(self, delivery: Delivery) -> None:
        """Open the others' envelopes: from now on masks are shared with those who are present.

        Raises `SecureSumRefused` when it is not for this device, too few are present, or another came before.
        """
        roster = self._roster()
        if delivery.roster != roster.digest or delivery.receiver != self.place or delivery.asks != self.asks:
            raise SecureSumRefused("these shares are of another roster, or for another device")
        if self.present and self.present != delivery.present:
            raise SecureSumRefused("it was said before that others shared their keys")
        if not delivery.present[self.place]:
            raise SecureSumRefused("this device's own shares did not reach its group in time")
        self._check_size(delivery.present, "shared their keys")
        for at, envelope in enumerate(delivery.envelopes):
            if envelope and (piece := unseal(self._envelope_secret(at), self._way(at, self.place), envelope)):
                self.held[at] = piece
        self.present, self.shares = delivery.present, None

    def mask(
        self,
        ask: int,
        task: bytes,
        tensors: bytes,
        values: Mapping[str, Tensor],
        layout: Layout,
        salt: int,
        noise: Words | None = None,
    ) -> MaskedUpload:
        """Write the device's tensors in fixed point, and hide them under its masks. An ask is answered once.

        Args:
            ask: The ask's number, from 0.
            task: The task as it came.
            tensors: Hash of the tensors that the device worked on.
            values: What is to be added up.
            layout: Its names, shapes and bounds, as task and settings give them.
            salt: The device's own, for rounding at random.
            noise: Whole numbers by name that are added to those of the tensors.

        Raises `SecureSumRefused` for an ask that is over, and `SecureSumError` for values that do not fit the layout.
        """
        roster = self._ready(ask)
        if ask in self.masked or ask in self.unmasked:
            raise SecureSumRefused(f"ask {ask + 1} was answered or unmasked before: its masks hide nothing more")
        context = ask_context(task, tensors, roster.digest, self.present, ask, layout)
        words = to_words(values, layout, sum(self.present), salt)
        add(words, noise or {})
        key = ask_key(self.keys.ask_seed(ask))
        secrets = {
            at: agree(key, roster.members[at].key(ask), roster.name(at))
            for at, there in enumerate(self.present)
            if there and at != self.place
        }
        self.masked[ask] = context
        add_self_mask(words, layout, self.keys.self_mask_seed(ask), context, 1)
        for at, shared in secrets.items():
            add_pair_mask(words, layout, shared, (self.place, at), context, 1)
        signature = sign_in_epoch(self.keys.signing_key(), claim(roster.digest, self.present, ask, self.place, context))
        return MaskedUpload(ask, self.place, context, signature, pack(words, layout))

    def unmask(self, request: UnmaskRequest) -> UnmaskReply:
        """Give shares of the self-mask seeds of those who answered, and of the keys of those who did not.

        Never both for one device, so one list an ask; the same list again gets the same shares. Raises `SecureSumRefused` for
        another list, one that is not of this roster, one that names who did not answer, or to something else than this device,
        and for too few devices or people in the sum; and what `Policy.read` raises.
        """
        roster = self._ready(request.ask)
        answered = request.answered
        if request.roster != roster.digest or len(answered) != len(self.present):
            raise SecureSumRefused("this list is not of this device's roster")
        if any(one and not there for one, there in zip(answered, self.present, strict=True)):
            raise SecureSumRefused("this list names a device that never shared its keys")
        if self.unmasked.get(request.ask, answered) != answered:
            raise SecureSumRefused(f"ask {request.ask + 1} was unmasked for another list of devices")
        self._check_size(answered, "answered")
        self._check_claims(request)
        others = [member for at, member in enumerate(roster.members) if answered[at] and at != self.place]
        named = frozenset(member.fingerprint for member in others)
        self.policy.read(roster.request.epoch, request.ask, named, answered[self.place])
        self.unmasked[request.ask] = answered
        given = (self._piece(at, request.ask, one) if self.present[at] else None for at, one in enumerate(answered))
        return UnmaskReply(request.ask, self.place, tuple(given))

    def _check_claims(self, request: UnmaskRequest) -> None:
        """All who answered must have signed that they did, with the same devices present, to the same as this device."""
        roster, ask = self._roster(), request.ask
        if self.masked.get(ask, request.context) != request.context:
            raise SecureSumRefused(
                f"this device was told something else in ask {ask + 1} than those who are in the sum"
            )
        for place, signature in enumerate(request.signatures):
            content = claim(roster.digest, self.present, ask, place, request.context)
            if signature and not is_signed_in_epoch(roster.members[place].signing, content, signature):
                raise SecureSumRefused(f"{roster.name(place)} did not answer ask {ask + 1}, or was told something else")

    def _piece(self, place: int, ask: int, answered: bool) -> bytes | None:
        """The share of one member's secret that unmasks an ask."""
        at = (ask if answered else self.asks + ask) * SHARE
        return self.held[place][at : at + SHARE] if place in self.held else None

    def _roster(self) -> Roster:
        if self.roster is None:
            raise SecureSumRefused("this device has no roster yet")
        return self.roster

    def _ready(self, ask: int) -> Roster:
        if not self.present:
            raise SecureSumRefused("the group's shares have not come yet")
        if not 0 <= ask < self.asks:
            raise SecureSumRefused(f"the epoch has {self.asks} asks, and this is number {ask + 1}: begin another epoch")
        return self._roster()

    def _check_size(self, chosen: tuple[bool, ...], did: str) -> None:
        roster = self._roster()
        n, needed = sum(chosen), max(threshold(len(chosen)), self.policy.devices)
        if n < needed:
            raise SecureSumRefused(f"{n} of {len(chosen)} devices {did}; this device wants at least {needed}")
        if (people := roster.people(chosen)) < self.policy.people:
            raise SecureSumRefused(
                f"behind those who {did} are {people} people; this device wants {self.policy.people}: with just as many on all "
                "devices together, none may be lost"
            )

    def _envelope_secret(self, place: int) -> bytes:
        roster = self._roster()
        return agree(self.keys.envelope_key(), roster.members[place].envelope, roster.name(place))

    def _way(self, sender: int, receiver: int) -> bytes:
        return self._roster().digest + bytes([sender, receiver])
