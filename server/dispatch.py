"""Sends a task to the nodes of a federation, and adds up their replies as they arrive."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from tessera.common.config.federation import FederationSettings
from tessera.common.errors import DataError, HeldBack, RoundAbandoned, RunError, TesseraError
from tessera.common.flower_internals.grid import push, replies
from tessera.common.privacy.between import HELD_BACK, LEAST, people_between
from tessera.common.protocol.masked.masking import MASKED
from tessera.common.protocol.messages import (
    Kind,
    Task,
    held_catalogue,
    pack_task,
    refused,
    split_answers,
    with_catalogue,
)
from tessera.common.protocol.signed.statements import with_statement
from tessera.common.protocol.tensors import Tensors, array_bytes
from tessera.common.protocol.updates import Update
from tessera.common.utils import counter_rng
from tessera.common.utils.pauses import Pauses
from tessera.server.aggregate import Aggregate
from tessera.server.live.standing import Standings
from tessera.server.nodes.catalogue_delivery import CatalogueDelivery
from tessera.server.nodes.request import Asked, Check, For, Request, no_broadcast
from tessera.server.nodes.signing import Signer
from tessera.server.robust import combiner
from tessera.server.robust.claims import Claims
from tessera.server.secure.sums import MaskedAnswers, SecureSums
from tessera.server.validation import (
    EXAGGERATED,
    FAILED,
    LATE,
    MALFORMED,
    OUTDATED,
    REFUSED,
    REMEDIES,
    STRAY,
    Expected,
    RejectedUpdate,
    degenerate,
    validate_update,
)

log = logging.getLogger("tessera.server")
SELECT_SECONDS = 30.0
"""How long the end of a run waits for clients to note which round was selected; who does not goes by an earlier one."""
HASTY = ("train", "select")
"""Tasks that go to whoever is ready, without waiting for nodes that are still at an earlier one."""


def asked_again(task: Task) -> Task | None:
    """What a node that failed is asked again: not to train, since a round goes on without it."""
    return task if task.kind != "train" else task.without_last()


class Dispatcher:
    """All nodes of a federation, over Flower's Grid."""

    def __init__(
        self,
        grid: Grid,
        settings: FederationSettings,
        secure: SecureSums | None = None,
        delivery: CatalogueDelivery | None = None,
        signer: Signer | None = None,
    ) -> None:
        self.grid, self.settings, self.secure, self.delivery, self.signer = grid, settings, secure, delivery, signer
        self.standings = Standings()
        self._held: dict[int, str] = {}
        self._clients: dict[int, str | None] = {}
        self._late: dict[str, tuple[int, float]] = {}
        self._claims = Claims()
        self.begun = False
        """Whether the run has begun: before, all nodes must say whom they have."""
        self._exaggerated = False
        self._asked_whom: set[int] = set()
        self._counted: dict[int, int] = {}

    @property
    def groups(self) -> int | None:
        """How many groups of nodes there are whose sums alone can be read; None where each node's answers can."""
        return self.secure.groups if self.secure else None

    @property
    def outdated(self) -> bool:
        """Whether people are to be counted again: a node had more than it has said, or came after they were asked. Under masks
        only once as many came or went as devices ask for in a sum: the difference of two counts would be fewer people's."""
        if self.secure:
            return people_between(self._counted, self.secure.people()) >= LEAST
        return self._exaggerated or bool(set(self.grid.get_node_ids()) - self._asked_whom)

    def online(self, only: Collection[int] | None = None) -> list[int]:
        """The nodes that are online, or those of `only` some."""
        return [node for node in self.grid.get_node_ids() if only is None or node in only]

    def wait(self, nodes: int, limit: float, look: Callable[[], None] = lambda: None) -> None:
        """Wait until so many nodes are online, and `look` meanwhile for whether to. Raises `RunError` when they are not within
        `limit` seconds."""
        deadline, pauses, told = time.monotonic() + limit, Pauses(), False
        while (online := len(list(self.grid.get_node_ids()))) < nodes:
            if time.monotonic() > deadline:
                raise RunError(f"only {online} of {nodes} nodes came online in {limit:g} s")
            self.standings.start(online, nodes)
            look()
            if not told:
                log.info("%d of %d nodes are online: waiting for the others", online, nodes)
            told = True
            pauses.wait()

    def dispatch(
        self,
        task: Task,
        broadcast: For = no_broadcast,
        inputs: Tensors | None = None,
        check: Check = lambda update: None,
        counts: Mapping[str, torch.Size] | None = None,
        only: Collection[int] | None = None,
    ) -> dict[Kind, Aggregate]:
        """Give nodes `task` and add up their updates as they arrive, so memory does not grow with the nodes.

        All are asked, or `only` some; and to train as many as the settings say. A client's broadcast goes only to nodes that
        lack its tensors by their content hash; `inputs` always. Vectors come back by the names and shapes in `counts`, and no
        others. What is not valid, or does not pass `check`, is dropped, counted and its node named.

        Returns the sum for each thing that was asked, the task itself and what goes along. One of no use has a `failure`:
        `RoundAbandoned` where too few answered in time (all nodes must where the sum stands for the whole run), `RunError`
        where at least half of the replies were of no use in the same way.
        """
        self.standings.ask(task)
        totals = {one.kind: Aggregate(combiner(self.settings.defence, one, self._claims)) for one in task.asks()}
        try:
            asked = self._draw(self._ready(task, totals, only), task)
        except RoundAbandoned as reason:
            return {kind: replace(total, failure=reason) for kind, total in totals.items()}
        if task.kind == "item_statistics":
            self._exaggerated, self._asked_whom = False, self._asked_whom | set(asked)
            self._counted = self.secure.people() if self.secure else {}
        broadcasts = {node: broadcast(self._clients.get(node)) for node in asked}
        inputs, counts, masked, sent, roster = inputs or {}, counts or {}, None, broadcast(None), ""
        if self.secure and task.kind != "select":
            task, roster = self.secure.stamp(task, sent.tensors, counts), self.secure.roster
            masked = self.secure.answers(task, asked, sent.shared, inputs)
        signed = self.signer.sign(task, sent.shared, inputs, roster) if self.signer else None
        request = Request(task, broadcasts, inputs, counts, check, totals, masked, signed)
        waiting: dict[str, Asked] = {}
        self.standings.answered(0, len(asked))
        for nodes in request.alike(lambda node: self._held.get(node) == broadcasts[node].name):
            waiting |= self._send(nodes, task, request)
        self._gather(waiting, request)
        if self.secure and masked:
            self._unmask(self.secure, masked, request)
        for one in task.asks():
            totals[one.kind].failure = self._failure(totals[one.kind], one)
        return totals

    def _ready(self, task: Task, totals: Mapping[Kind, Aggregate], only: Collection[int] | None = None) -> list[int]:
        """Wait until as many nodes are online as must answer, and, but for hasty tasks, until none is still at an earlier one.

        A node works off its tasks one after the other: one that owes an answer would answer this one ever later.
        """
        hasty = all(one.kind in HASTY for one in task.asks())
        deadline, pauses = time.monotonic() + self._limit(task), Pauses()
        while True:
            self._drop_late()
            online, owing = self.online(only), {node for node, _ in self._late.values()}
            ready = [node for node in online if node not in owing]
            enough = len(ready) >= self._least(task) and (hasty or len(ready) == len(online))
            if enough or time.monotonic() > deadline:
                break
            pauses.wait()
        if only is None and 0 < len(online) < self.settings.nodes:
            for total in totals.values():
                total.troubles.append(f"only {len(online)} of {self.settings.nodes} nodes are online")
        return ready

    def _draw(self, ready: list[int], task: Task) -> list[int]:
        """The nodes that get `task`: all, or those whose draw for a round of training is lowest."""
        if self.secure and task.kind != "select":
            return self.secure.draw(task, ready)
        if task.kind != "train" or not self.settings.clients_per_round:
            return ready
        draws = {node: counter_rng.key("participants", task.settings.seed, task.round, node) for node in ready}
        return sorted(ready, key=draws.__getitem__)[: self.settings.asked]

    def _gather(self, waiting: dict[str, Asked], request: Request) -> None:
        """Take replies until all are in, enough are, or the time is over; `waiting` by message is what has been asked."""
        enough = self.settings.clients_per_round if request.task.kind == "train" else 0
        limit, pauses, total = self._limit(request.task), Pauses(), request.total
        deadline = time.monotonic() + limit

        def is_enough() -> bool:
            return 0 < enough <= request.answered()

        while waiting and not is_enough():
            heard = False
            for message, reply in replies(self.grid, list(waiting)):
                heard, asked = True, waiting.get(message)
                # An error that the SuperLink reports speaks for the node that was asked.
                if asked is None or (reply and reply.has_content() and asked.node != reply.metadata.src_node_id):
                    if reply:
                        total.drop(STRAY, reply.metadata.src_node_id, "answered a second time, or for another node")
                    continue
                del waiting[message]
                if reply is None:
                    request.drop(asked.task.asks(), MALFORMED, asked.node, "sent what is no message")
                elif is_enough():
                    total.dropped[LATE] += 1
                elif again := self._take(reply, asked, request):
                    waiting |= self._send([asked.node], again, request)
            if heard:
                pauses = Pauses()
                self.standings.answered(total.nodes, len(request.broadcasts))
            elif time.monotonic() > deadline:  # only now: the inline nodes answer one after the other, when asked
                for node, task in waiting.values():
                    request.drop(task.asks(), LATE, node, f"did not answer in {limit:g} s")
                break
            else:
                pauses.wait()
        if waiting and is_enough():  # whoever was not waited for is late, and no trouble
            total.dropped[LATE] += len(waiting)
        forget = time.monotonic() + self.settings.timeout
        self._late |= {message: (asked.node, forget) for message, asked in waiting.items()}

    def _unmask(self, secure: SecureSums, masked: MaskedAnswers, request: Request) -> None:
        """Add the groups' sums to the totals, in place of the answers that only were counted till then."""
        sums, sent = masked.unmask(secure.exchange), next(iter(request.broadcasts.values())).tensors
        down, up = secure.exchange.traffic()
        request.total.bytes_down += down
        request.total.bytes_up += up
        for trouble in secure.exchange.said():
            log.warning("round %d, secure sums: %s", request.task.round, trouble)
        for one in request.task.asks():
            total = request.totals[one.kind]
            expected = Expected(one, sent, request.counts, self.settings.largest_gradient, request.inputs)
            good = []
            for group in sums[one.kind]:
                try:
                    good.append(group.checked(expected))
                    total.combiner.add(good[-1])
                except RejectedUpdate as rejected:
                    total.drop_group(rejected.kind, group.nodes, str(rejected))
                    total.lost += rejected.sums
            secure.bounds.learn(good)

    def _drop_late(self) -> None:
        """Drop replies to requests that were closed without them, and were counted then: their round is over."""
        if self.secure:
            self.secure.exchange.forget_late()
        for message, _ in replies(self.grid, list(self._late)) if self._late else ():
            self._late.pop(message, None)
        self._late = {message: late for message, late in self._late.items() if late[1] > time.monotonic()}

    def _send(self, nodes: list[int], task: Task, request: Request) -> dict[str, Asked]:
        """Send their messages to nodes that get the same broadcast; return what was asked by message."""
        broadcast = request.broadcasts[nodes[0]]
        tensors = None if self._held.get(nodes[0]) == broadcast.name or not broadcast.name else broadcast.content
        change = self.delivery.take(nodes[0]) if self.delivery else b""
        content = pack_task(replace(task, tensors=broadcast.name), tensors, request.inputs)
        content = with_statement(with_catalogue(content, change), request.statement)
        kind = task.kind if task.kind in ("train", "evaluate") else "query"
        pushed = push(self.grid, content, nodes, kind, str(task.round))
        if len(pushed) < len(nodes):
            raise RunError(
                f"round {task.round}: Flower's SuperLink does not take a message of {array_bytes(content)} bytes"
            )
        for node in (node for message, node in zip(pushed, nodes, strict=True) if not message):
            request.drop(task.asks(), FAILED, node, "cannot be sent to; it was revoked a moment ago")
        sent = {message: Asked(node, task) for message, node in zip(pushed, nodes, strict=True) if message}
        inputs = array_bytes(RecordDict({"inputs": content["inputs"]}))
        request.totals[task.kind].bytes_down += (array_bytes(content) + len(change) - inputs) * len(sent)
        request.totals[task.asks()[0].kind].bytes_down += inputs * len(sent)  # training itself needs none
        return sent

    def _take(self, reply: Message, asked: Asked, request: Request) -> Task | None:
        """Add one reply to the totals; return what its node is to be asked again, if anything."""
        node, task = asked
        if reply.has_error():
            why, again = f"failed: {reply.error.reason}", asked_again(task)
            if again is None or not request.again(node):
                request.drop(task.asks(), FAILED, node, why)
                return None
            if again is not task:
                request.drop([replace(task, also=())], FAILED, node, why)
            return again
        if "missing" in reply.content.config_records:
            self._held.pop(node, None)
            if request.again(node):
                return task
            request.drop(task.asks(), FAILED, node, "keeps losing the tensors it is sent")
            return None
        if self.delivery and (held := held_catalogue(reply.content)) is not None:
            return self._deliver(self.delivery, held, asked, request)
        answers = split_answers(task, reply.content)
        for one in task.asks():
            self._add(answers[one.kind], Asked(node, one), request)
        return None

    def _deliver(self, delivery: CatalogueDelivery, held: str, asked: Asked, request: Request) -> Task | None:
        """Ask a node the same again with what its catalogue lacks; not one that has no earlier version of the run's."""
        try:
            delivery.hear(asked.node, held)
            if request.again(asked.node):
                return asked.task
            why = "does not take the later version of the catalogue"
        except DataError as error:
            why = str(error)
        request.drop(asked.task.asks(), OUTDATED, asked.node, why)
        return None

    def _add(self, content: RecordDict, asked: Asked, request: Request) -> None:
        """Add a node's answer to one thing that it was asked."""
        node, total = asked.node, request.totals[asked.task.kind]
        if (refusal := refused(content)) is not None:
            total.drop(refusal.kind if refusal.kind == HELD_BACK else REFUSED, node, f"refused: {refusal.reason}")
            if self.secure:
                self.secure.refused(node, refusal.kind)
            return
        total.bytes_up += array_bytes(content)
        try:
            update = self._fitting(content, asked, request)
            if not request.masked or update.parts:  # what is masked is its group's to add
                total.combiner.add(update)
        except RejectedUpdate as rejected:
            said = "is refused" if rejected.kind == REFUSED else f"returned something {rejected.kind}"
            total.drop(rejected.kind, node, f"{said}: {rejected}")
            total.lost += rejected.sums
            self._exaggerated |= rejected.kind == EXAGGERATED
            return
        total.answered.add(node)
        self._held[node] = request.broadcasts[node].name or self._held.get(node, "")

    def _fitting(self, content: RecordDict, asked: Asked, request: Request) -> Update:
        """The update of a node that has been looked at from all sides. Raises `RejectedUpdate`."""
        sent = request.broadcasts[asked.node].tensors
        claim = self._claims.of(asked.node)
        expected = Expected(asked.task, sent, request.counts, self.settings.largest_gradient, request.inputs, claim)
        update = validate_update(content, expected)
        try:
            self._know(asked.node, update)
            request.check(update)
            if request.masked:
                request.masked.add(asked.node, asked.task.kind, update)
                update = update.without(MASKED)
        except Exception as error:
            raise RejectedUpdate(MALFORMED, str(error) or type(error).__name__) from None
        if asked.task.kind == "item_statistics" and not request.masked:
            self._claims.hear(asked.node, update)
        return update

    def _know(self, node: int, update: Update) -> None:
        """Keep a node's client. Raises `RunError` when it sends for another than before, for another node's, or for several."""
        known, names = self._clients.get(node), update.clients()
        said = next(iter(names), None)
        others = {client for other, client in self._clients.items() if other != node and client}
        if len(names) > 1 or (known and said != known) or said in others:
            raise RunError("it speaks for another client than its own")
        self._clients[node] = said

    def _limit(self, task: Task) -> float:
        """Seconds that nodes have for a task."""
        return min(self.settings.timeout, SELECT_SECONDS) if task.kind == "select" else self.settings.timeout

    def _least(self, task: Task) -> int:
        """How many nodes must answer: all that the run began with, where their answer stands for the whole run."""
        if task.kind == "select":
            return 0
        if task.kind in ("item_statistics", "power", "aspects") and not self.begun:
            return max(self.settings.nodes, self.settings.min_nodes)
        return self.settings.least if task.kind == "train" else self.settings.min_nodes

    def _failure(self, total: Aggregate, task: Task) -> TesseraError | None:
        """Say in the log what was dropped, and return what there is to say where the sum is of no use."""
        for kind, remedy in REMEDIES.items():
            if total.dropped[kind] and total.dropped[kind] >= total.nodes:
                _, told = degenerate(task.kind, total.update.sums + total.lost) or ("", total.troubles[-1])
                return RunError(f"round {task.round}: {told}; {remedy}")
        for trouble in total.troubles:
            log.warning("round %d, %s: %s", task.round, task.kind, trouble)
        if total.nodes < (least := self._least(task)):
            why = "; ".join(total.troubles) or "no node is online"
            if total.dropped[HELD_BACK]:
                return HeldBack(f"round {task.round}: devices hold {task.kind} back: {why}")
            reason = f"round {task.round}: {total.nodes} nodes answered to {task.kind}, {least} must: {why}"
            return RoundAbandoned(reason, total.dropped)
        return None
