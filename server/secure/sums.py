"""Adds up devices' masked answers group by group: keys for an epoch, numbers for what is asked, and sums without masks."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from flwr.serverapp import Grid

from tessera.common.config.federation import FederationSettings
from tessera.common.config.settings import Settings
from tessera.common.errors import RoundAbandoned, RunError, SecureSumError, SecureSumRefused
from tessera.common.metrics.ranking import MetricSums
from tessera.common.privacy.masked_noise import SLACK, MaskedNoise
from tessera.common.privacy.quantile import BELOW, half, with_bit
from tessera.common.protocol.figures import CONSTANT, NONFINITE, SCALED
from tessera.common.protocol.masked.key_list import KeyList
from tessera.common.protocol.masked.masking import COUNTED, GRADIENTS, MASKED, Terms, of_values, tables, terms
from tessera.common.protocol.messages import BASIS, Kind, Masking, Task
from tessera.common.protocol.projection import Projection
from tessera.common.protocol.signed.statements import roster_hash
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.common.secure.group import SecureAsk
from tessera.common.secure.messages import EPOCH, KeysRequest, UnmaskReply
from tessera.common.utils import counter_rng
from tessera.server.robust.claims import Claim
from tessera.server.secure.bounds import Bounds
from tessera.server.secure.epoch import Epoch, begin, nodes_of
from tessera.server.secure.exchange import Exchange
from tessera.server.validation import UNREADABLE, Expected, RejectedUpdate, check_update
from tessera.server.views.facets import most_asks

log = logging.getLogger("tessera.server")
CHANCES = 3
"""Epochs that are begun for the sake of a node that was online and in none of their groups."""


@dataclass(frozen=True)
class GroupSum:
    """What a group adds up to, and who is in it; or, in `failure`, why nothing can be said of it."""

    nodes: tuple[int, ...]
    people: int = 0
    update: Update | None = None
    failure: str = ""

    def checked(self, expected: Expected) -> Update:
        """The sum, once it is looked at like any device's update. Raises `RejectedUpdate`.

        In a group a few people whose losses or scores are useless do not cost all others' answers; what was not finite their
        devices have left out. Where it is at least half of the people, the run is at fault.
        """
        if self.update is None:
            raise RejectedUpdate(UNREADABLE, self.failure)
        update, sums = self.update, self.update.sums
        few = [what for what in (NONFINITE, CONSTANT) if 0 < 2 * sums[what] < sums["users"] + sums["evaluated"]]
        for what in few:
            log.warning("%s: %.0f people of a group count as %s", expected.task.kind, sums[what], what)
        if sums[SCALED]:
            log.warning(
                "%s: %.0f devices had gradients above their bound, and scaled them down",
                expected.task.kind,
                sums[SCALED],
            )
        update = replace(update, sums=MetricSums({**sums.values, **dict.fromkeys(few, 0.0)}))
        check_update(update, replace(expected, claim=Claim(float(self.people), math.inf)))
        return update


class MaskedAnswers:
    """The masked answers to one message, as they come in: a sum for each thing that was asked and each group."""

    def __init__(self, epoch: Epoch, groups: Iterable[int], task: Task, shared: str, inputs: Tensors) -> None:
        self.epoch, self.members = epoch, dict(epoch.members)
        self.terms: dict[Kind, Terms] = {one.kind: terms(one, shared, inputs) for one in task.asks()}
        numbers = {one.kind: one.masking.asks[0] for one in task.asks() if one.masking}
        self.asks: dict[tuple[Kind, int], SecureAsk] = {
            (kind, at): epoch.groups[at].ask(numbers[kind], own.task, own.tensors, own.layout)
            for kind, own in self.terms.items()
            for at in groups
        }
        self.answered: dict[tuple[Kind, int], list[int]] = {key: [] for key in self.asks}

    def add(self, node: int, kind: Kind, update: Update) -> None:
        """Add a node's masked answer to its group's. Raises `SecureSumError`."""
        (upload,), (at, place) = update[MASKED], self.members[node]
        if upload.sender != place:
            raise SecureSumError("it answered in another's name")
        self.asks[kind, at].add(upload)
        self.answered[kind, at].append(node)

    def whole(self, kind: Kind, asked: Iterable[int]) -> int:
        """How many nodes are in groups all of whose nodes that were asked have answered."""
        wanted: dict[int, set[int]] = {}
        for node in asked:
            wanted.setdefault(self.members[node][0], set()).add(node)
        return sum(len(nodes) for at, nodes in wanted.items() if nodes <= set(self.answered[kind, at]))

    def unmask(self, exchange: Exchange) -> dict[Kind, list[GroupSum]]:
        """Ask those who answered for the shares that unmask their groups' sums, and read these."""
        failures: dict[tuple[Kind, int], str] = {}
        requests: dict[int, list[tuple[SecureAsk, bytes]]] = {}
        for (kind, at), ask in self.asks.items():
            try:
                requests.setdefault(at, []).append((ask, ask.request().write()))
            except SecureSumError as error:
                failures[kind, at] = str(error)

        def take(node: int, messages: tuple[bytes, ...]) -> None:
            at, place = self.members[node]
            if len(messages) != len(requests[at]):
                raise SecureSumError("it did not answer to each sum")
            for (ask, _), message in zip(requests[at], messages, strict=True):
                if message:  # empty where it refuses
                    reply = UnmaskReply.read(message)
                    if reply.sender != place:
                        raise SecureSumError("it answered in another's name")
                    ask.take(reply)

        sent = [(self._to_ask(at, open), [request for _, request in open]) for at, open in requests.items()]
        exchange.ask(
            "unmask", sent, take, lambda: all(not ask.missing for open in requests.values() for ask, _ in open)
        )
        found: dict[Kind, list[GroupSum]] = {kind: [] for kind in self.terms}
        for key, ask in self.asks.items():
            found[key[0]].append(self._read(key, ask, failures.get(key, "")))
        return found

    def _to_ask(self, at: int, open: Sequence[tuple[SecureAsk, bytes]]) -> list[int]:
        """The nodes of a group that are in any of its sums."""
        places = {place for ask, _ in open for place in ask.signatures}
        return [node for node in nodes_of(at, self.members) if self.members[node][1] in places]

    def _read(self, key: tuple[Kind, int], ask: SecureAsk, failure: str) -> GroupSum:
        nodes = tuple(self.answered[key])
        if failure:
            return GroupSum(nodes, failure=failure)
        try:
            total = ask.result()
        except SecureSumError as error:
            return GroupSum(nodes, failure=str(error))
        if total.wrong:
            log.warning("a group's shares were wrong, of or held by %s", "; ".join(total.wrong))
        return GroupSum(nodes, total.people, of_values(total.values, self.terms[key[0]]))


class SecureSums:
    """The secure sums of a run: an epoch after the other, and bounds that follow the gradients' size.

    A new epoch begins when the asks of the last one are used up, a device has come, or too few of a group are left.
    """

    def __init__(
        self, exchange: Exchange, settings: FederationSettings, size: int, asks: int, admitted: Path | None = None
    ) -> None:
        self.exchange, self.settings, self.size, self.admitted = exchange, settings, size, admitted
        self._listed: KeyList | None = None
        self.asks = min(asks, EPOCH)
        self.epoch: Epoch | None = None
        self._known: dict[int, bytes] = {}
        self._missed: Counter[int] = Counter()
        self._number = 0
        self.bounds = Bounds()

    @classmethod
    def of(cls, grid: Grid, settings: Settings, run: str, admitted: Path | None = None) -> "SecureSums":
        """Those of a run; `admitted` is where the operator's list of devices lies, if there is one. Keys are asked for as many
        asks as it needs, with some to spare for what is asked again."""
        asks = settings.rounds + settings.rounds // settings.evaluation.every + settings.views.spectral_rounds + 6
        if settings.views.facets > 1:
            asks += most_asks(settings.views.facet_steps)
        asks += settings.local.groups.lloyd_rounds if settings.local.groups.by_sums else 0
        exchange = Exchange(grid, run, settings.federation.timeout)
        return cls(exchange, settings.federation, settings.privacy.group, asks, admitted)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len(self.epoch.groups) if self.epoch else 0

    @property
    def roster(self) -> str:
        """A hash of all devices' announcements in the epoch; "" where there is none yet."""
        return roster_hash(self.epoch.groups[0].roster.everyone) if self.epoch else ""

    def people(self) -> dict[int, int]:
        """How many people each node of the epoch registered with."""
        if self.epoch is None:
            return {}
        groups = [group.roster.members for group in self.epoch.groups]
        return {node: groups[at][place].people for node, (at, place) in self.epoch.members.items()}

    def draw(self, task: Task, ready: Sequence[int]) -> list[int]:
        """The nodes that get `task`: whole groups, all or, to train, as many as are asked in a round.

        Begins a new epoch where that is due. Raises `RoundAbandoned` where devices do not come together.
        """
        epoch = self._current(ready, len(task.also) + 1)
        online = set(ready)
        there = {at: [node for node in epoch.nodes(at) if node in online] for at in range(len(epoch.groups))}
        if task.kind != "train" or not self.settings.clients_per_round:
            return [node for nodes in there.values() for node in nodes]
        key = counter_rng.key("participants", task.settings.seed, task.round)
        drawn: list[int] = []
        for at in sorted(there, key=lambda at: counter_rng.key("groups", key, epoch.groups[at].roster.digest.hex())):
            if len(drawn) < self.settings.asked:
                drawn += there[at]
        return drawn

    def stamp(self, task: Task, sent: Tensors, counts: Mapping[str, torch.Size]) -> Task:
        """The task with the numbers of its asks, and what is added up of its answers."""
        assert self.epoch
        first, n = self.epoch.used, len(task.also) + 1
        self.epoch.used += n
        projection = Projection.of(task)
        along = projection.outline(sent) if projection else sent
        privacy = task.settings.privacy
        wanted = with_bit(along, privacy) if task.kind == "train" else {}
        learnt = {name: value.shape for name, value in wanted.items()}
        people, short = self.epoch.most_people, task.settings.wire.gradients == "int16"
        bounded = self.bounds.tables(learnt, float(people), short)
        if BELOW in learnt:  # what a sum of bits was says nothing of how large one device's can be
            rest = tuple(spec for spec in bounded if spec.name != GRADIENTS + BELOW)
            bounded = rest + tables(GRADIENTS, {BELOW: learnt[BELOW]}, {BELOW: SLACK * half(privacy) * people})
        if noise := MaskedNoise.of(privacy):  # people are clipped: nothing is to be learnt of the sums
            fewest = min(sum(group.present) for group in self.epoch.groups)
            bounded = tables(GRADIENTS, learnt, dict.fromkeys(learnt, noise.bound(people, fewest)))
        added = bounded + tables(COUNTED, counts, {BASIS: float(people)})
        return replace(task, masking=Masking(self.epoch.request.epoch, tuple(range(first, first + n)), added))

    def answers(self, task: Task, asked: Iterable[int], shared: str, inputs: Tensors) -> MaskedAnswers:
        """What takes in the answers of the nodes that were asked."""
        assert self.epoch
        return MaskedAnswers(self.epoch, sorted({self.epoch.members[node][0] for node in asked}), task, shared, inputs)

    def refused(self, node: int, kind: str) -> None:
        """Take note that a node refused an ask: one that has not its keys any more needs others."""
        if self.epoch and kind == SecureSumRefused.kind:
            self.epoch.members.pop(node, None)

    def _current(self, ready: Sequence[int], n: int) -> Epoch:
        epoch, before, self._listed = self.epoch, self._listed, self._read_list()
        if (
            epoch
            and self._listed == before
            and epoch.serves(n, ready)
            and not any(self._is_new(node, epoch) for node in ready)
        ):
            return epoch
        known = [node for node in ready if epoch and node in epoch.members]
        try:
            epoch = self._begin(ready, n)
        except RoundAbandoned:
            if not known or len(known) == len(ready):
                raise
            epoch = self._begin(known, n)  # these may not take the keys of those that are new
        self.epoch = epoch
        self._missed.update(node for node in ready if node not in epoch.members)
        return epoch

    def _begin(self, nodes: Sequence[int], n: int) -> Epoch:
        """Begin an epoch among nodes, for n asks at least. Raises `RoundAbandoned`."""
        self._number = max(self._number + 1, int(time.time()))  # above that of any earlier process of this run
        request = KeysRequest(self.exchange.run, self._number, max(self.asks, n))
        try:
            return begin(self.exchange, nodes, request, self.size, self._known, self._listed)
        except SecureSumError as error:
            raise RoundAbandoned(f"no secure sums: {error}") from None
        finally:
            for trouble in self.exchange.said():
                log.warning("epoch %d of secure sums: %s", self._number, trouble)

    def _read_list(self) -> KeyList | None:
        """The operator's list, as it lies there now: when it changes a new epoch begins. Raises `RunError`."""
        if self.admitted is None or not self.admitted.exists():
            return None
        try:
            return KeyList.read(self.admitted.read_bytes())
        except (OSError, SecureSumError) as error:
            raise RunError(f"{self.admitted} cannot be read: {error}") from None

    def _is_new(self, node: int, epoch: Epoch) -> bool:
        """Whether a node is in no group and may yet come to be in one: it has not missed the beginning of many epochs."""
        return node not in epoch.members and self._missed[node] < CHANCES
