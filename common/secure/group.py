"""Adds up one group's masked uploads on the server: hands shares on, and unmasks the sum of those who answered.

The server never holds anything from which a single device's upload could be read, as long as fewer than a third of a group
tell it their secrets.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from tessera.common.errors import SecureSumError
from tessera.common.secure.fixed_point import Layout, Words, add, from_words, unpack, zeros
from tessera.common.secure.keys import agree, ask_key, check_value, is_signed_in_epoch, public_bytes
from tessera.common.secure.masks import add_pair_mask, add_self_mask, ask_context
from tessera.common.secure.messages import Delivery, MaskedUpload, Roster, Shares, UnmaskReply, UnmaskRequest, claim
from tessera.common.secure.shares import reconstruct, threshold


class SecureGroup:
    """A group's epoch, as the server knows it."""

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.shares: dict[int, Shares] = {}
        self.present: tuple[bool, ...] = ()

    def take_shares(self, shares: Shares) -> None:
        """Keep a member's envelopes. Raises `SecureSumError` when they are of another roster, or late, or come again."""
        if shares.roster != self.roster.digest or shares.asks != self.roster.request.asks:
            raise SecureSumError("these shares are of another roster")
        if len(shares.envelopes) != len(self.roster.members):
            raise SecureSumError("these shares are for another number of devices")
        if self.present or shares.sender in self.shares:
            raise SecureSumError(f"{self.roster.name(shares.sender)} sent its shares too late, or twice")
        self.shares[shares.sender] = shares

    def deliveries(self) -> dict[int, Delivery]:
        """What goes to each member that sent its shares, by place; who is present is settled with it.

        Raises `SecureSumError` when fewer than two thirds are: keys have to be asked for again.
        """
        n = len(self.roster.members)
        if len(self.shares) < threshold(n):
            missing = ", ".join(self.roster.name(at) for at in range(n) if at not in self.shares)
            raise SecureSumError(
                f"{len(self.shares)} of {n} devices shared their keys, {threshold(n)} must: not {missing}"
            )
        self.present = tuple(at in self.shares for at in range(n))
        return {at: self._delivery(at) for at in self.shares}

    def _delivery(self, receiver: int) -> Delivery:
        envelopes = tuple(
            self.shares[sender].envelopes[receiver] if there and sender != receiver else b""
            for sender, there in enumerate(self.present)
        )
        return Delivery(self.roster.digest, receiver, self.roster.request.asks, self.present, envelopes)

    def ask(self, ask: int, task: bytes, tensors: bytes, layout: Layout) -> "SecureAsk":
        """Begin a sum; `task`, `tensors` and `layout` as devices get them (`ask_context`)."""
        if not self.present:
            raise SecureSumError("the group's shares have not been handed on yet")
        if not 0 <= ask < self.roster.request.asks:
            raise SecureSumError(f"the epoch has {self.roster.request.asks} asks, and this is number {ask + 1}")
        context = ask_context(task, tensors, self.roster.digest, self.present, ask, layout)
        return SecureAsk(self, ask, context, layout, zeros(layout))


@dataclass(frozen=True)
class SecureSum:
    """A group's sum: tensors in float64, who is in it, how many people are behind them, and whose shares were wrong."""

    values: dict[str, Tensor] = field(repr=False)
    answered: tuple[int, ...]
    people: int
    wrong: tuple[str, ...] = ()


@dataclass(repr=False)
class SecureAsk:
    """One sum of a group: `add` uploads, send `request`, `take` the replies, and read `result`."""

    group: SecureGroup
    ask: int
    context: bytes
    layout: Layout
    total: Words
    signatures: dict[int, bytes] = field(default_factory=dict)
    """Of the uploads that are in the sum, by place."""
    replies: dict[int, UnmaskReply] = field(default_factory=dict)
    closed: bool = False

    def add(self, upload: MaskedUpload) -> None:
        """Add an upload, whose sender the caller knows to be who it says.

        Raises `SecureSumError` when it is late, comes again, or was masked for anything else.
        """
        at, roster = upload.sender, self.group.roster
        if at >= len(self.group.present) or not self.group.present[at]:
            raise SecureSumError(f"an upload of device {at + 1}, which did not share its keys with this group")
        if self.closed or at in self.signatures:
            raise SecureSumError(f"an upload of {roster.name(at)} came after the sum was closed, or twice")
        if upload.ask != self.ask or upload.context != self.context:
            raise SecureSumError(f"{roster.name(at)} answered another ask, task or layout, or worked on other tensors")
        content = claim(roster.digest, self.group.present, self.ask, at, self.context)
        if not is_signed_in_epoch(roster.members[at].signing, content, upload.signature):
            raise SecureSumError(f"the upload of {roster.name(at)} is not signed by it")
        add(self.total, unpack(upload.words, self.layout))
        self.signatures[at] = upload.signature

    def request(self) -> UnmaskRequest:
        """Close the sum, and say who is in it. Raises `SecureSumError` when they are too few for devices to unmask."""
        n, needed = len(self.group.present), threshold(len(self.group.present))
        if len(self.signatures) < needed:
            raise SecureSumError(f"{len(self.signatures)} of {n} devices answered, and a sum needs {needed} of them")
        self.closed = True
        signatures = tuple(self.signatures.get(at, b"") for at in range(n))
        return UnmaskRequest(self.group.roster.digest, self.ask, self.context, signatures)

    def take(self, reply: UnmaskReply) -> None:
        """Keep a member's shares, whose sender the caller knows to be who it says."""
        if not self.closed or reply.ask != self.ask or len(reply.shares) != len(self.group.present):
            raise SecureSumError("a reply to another request to unmask")
        self.replies[reply.sender] = reply

    @property
    def missing(self) -> int:
        """How many more replies are needed before `result` can be read."""
        return max(0, threshold(len(self.group.present)) - len(self.replies))

    def result(self) -> SecureSum:
        """Take all masks off the sum. Raises `SecureSumError`, naming whose secret cannot be put together, and from whom."""
        if not self.closed:
            raise SecureSumError("a sum has to be closed by its request to unmask before it is unmasked")
        total = {name: words.copy() for name, words in self.total.items()}
        wrong: set[int] = set()
        for at, there in enumerate(self.group.present):
            if there and at in self.signatures:
                add_self_mask(total, self.layout, self._self_mask_seed(at, wrong), self.context, -1)
            elif there:
                self._take_off_pairs(total, at, self._ask_seed(at, wrong))
        roster, answered = self.group.roster, tuple(sorted(self.signatures))
        values = from_words(total, self.layout, sum(self.group.present))
        people = sum(roster.members[at].people for at in answered)
        return SecureSum(values, answered, people, tuple(map(roster.name, sorted(wrong))))

    def _self_mask_seed(self, place: int, wrong: set[int]) -> bytes:
        check = self.group.shares[place].check(self.ask)
        return self._secret(place, "self mask", lambda seed: check_value(seed) == check, wrong)

    def _ask_seed(self, place: int, wrong: set[int]) -> bytes:
        announced = self.group.roster.members[place].key(self.ask)
        return self._secret(place, "key", lambda seed: public_bytes(ask_key(seed)) == announced, wrong)

    def _secret(self, place: int, what: str, fits: Callable[[bytes], bool], wrong: set[int]) -> bytes:
        """Put a secret together; those whose shares were wrong once come last from then on."""
        senders = sorted(self.replies, key=lambda sender: (sender in wrong, sender))
        shares = {sender: share for sender in senders if (share := self.replies[sender].shares[place]) is not None}
        what = f"the {what} of {self.group.roster.name(place)}"
        secret, found = reconstruct(shares, threshold(len(self.group.present)), fits, what)
        wrong |= found
        return secret

    def _take_off_pairs(self, total: Words, lost: int, seed: bytes) -> None:
        """Take off the masks that those who answered share with one that did not."""
        key, roster = ask_key(seed), self.group.roster
        for at in self.signatures:
            shared = agree(key, roster.members[at].key(self.ask), roster.name(at))
            add_pair_mask(total, self.layout, shared, (at, lost), self.context, -1)
