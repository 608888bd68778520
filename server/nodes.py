"""The federation's nodes as the round loop sees them: ask all of them, add up what they answer."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from common.codecs import decode, rotation
from common.config import FederationSettings
from common.errors import RoundAbandoned, RunError, TesseraError
from common.protocol import Parcel, Task, Tensors, Update, array_bytes, check_gradients, pack_task, unpack_update

log = logging.getLogger("tessera.server")
POLL = 0.1


@dataclass
class Answer:
    """What the nodes returned to one question, added up as it came in; bytes are of tensors, over all messages."""

    update: Update = field(default_factory=Update)
    nodes: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    troubles: list[str] = field(default_factory=list)


For = Callable[[str | None], Parcel]
"""What goes to a client, or to a node of which no client is known yet."""
Check = Callable[[Update], None]
"""Raises a `TesseraError` for an update that cannot be taken."""


def nothing(client: str | None) -> Parcel:
    """No tensors."""
    return Parcel({})


def _read(reply: Message, task: Task, sent: Tensors) -> Update:
    """A node's update, whose gradients must fit what was `sent`."""
    update, wire, shapes = unpack_update(reply.content), task.settings.wire, {n: tuple(sent[n].shape) for n in sent}
    gradients = decode(update.gradients, shapes, wire.gradients, rotation(task.settings.seed, task.round))
    return replace(update, gradients=gradients)


@dataclass(frozen=True)
class Question:
    """A task as it goes to several nodes: what each is to hold for it, and what must be true of their answers."""

    task: Task
    parcels: Mapping[int, Parcel]
    facts: Tensors | None
    check: Check

    def alike(self, holds: Callable[[int], bool]) -> list[list[int]]:
        """The nodes in groups that get the very same message."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for node, parcel in self.parcels.items():
            groups.setdefault((parcel.name, holds(node)), []).append(node)
        return list(groups.values())


class Nodes:
    """All nodes of a federation, over Flower's Grid."""

    def __init__(self, grid: Grid, settings: FederationSettings) -> None:
        self.grid, self.settings = grid, settings
        self._held: dict[int, str] = {}
        self._clients: dict[int, str | None] = {}

    def wait(self) -> None:
        """Wait until as many nodes as the settings say are online. Raises `RunError` when they are not in time."""
        deadline = time.monotonic() + self.settings.timeout
        while (online := len(list(self.grid.get_node_ids()))) < self.settings.nodes:
            if time.monotonic() > deadline:
                raise RunError(
                    f"only {online} of {self.settings.nodes} nodes came online in {self.settings.timeout:g} s"
                )
            time.sleep(POLL)

    def ask(
        self, task: Task, parcel: For = nothing, facts: Tensors | None = None, check: Check = lambda update: None
    ) -> Answer:
        """Give every node `task` and add up their updates as they arrive, so memory does not grow with the nodes.

        A client's parcel goes only to nodes that lack its tensors by their content hash; `facts` always. What is malformed, or
        does not pass `check`, is left out and its node named. Raises `RoundAbandoned` when too few answered to train on, and
        `RunError` when too few did to anything else before the timeout: `min_nodes`, and all nodes where the answer stands for
        the whole run.
        """
        answer, online = Answer(), list(self.grid.get_node_ids())
        if 0 < len(online) < self.settings.nodes:
            answer.troubles.append(f"only {len(online)} of {self.settings.nodes} nodes are online")
        question = Question(task, {node: parcel(self._clients.get(node)) for node in online}, facts, check)
        waiting: dict[str, int] = {}
        for nodes in question.alike(lambda node: self._held.get(node) == question.parcels[node].name):
            waiting |= self._send(nodes, question, answer)
        deadline, resent = time.monotonic() + self.settings.timeout, set[int]()
        while waiting:
            replies = list(self.grid.pull_messages(waiting.keys()))
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id)
                if self._take(reply, node, question, answer) and node not in resent:
                    resent.add(node)
                    waiting |= self._send([node], question, answer)
            if not replies:
                if time.monotonic() > deadline:  # only now: the inline nodes answer one after the other, when asked
                    break
                time.sleep(POLL)
        answer.troubles += [f"node {node} did not answer in {self.settings.timeout:g} s" for node in waiting.values()]
        self._require(answer, task)
        return answer

    def _send(self, nodes: list[int], question: "Question", answer: Answer) -> dict[str, int]:
        """Send nodes that are to get the same parcel their messages; return the nodes by message."""
        task, parcel = question.task, question.parcels[nodes[0]]
        tensors = None if self._held.get(nodes[0]) == parcel.name or not parcel.tensors else parcel.content
        content = pack_task(replace(task, tensors=parcel.name), tensors, question.facts)
        kind = task.kind if task.kind in ("train", "evaluate") else "query"
        messages = [Message(content, node, kind, group_id=str(task.round)) for node in nodes]
        answer.bytes_down += array_bytes(content) * len(nodes)
        return dict(zip(self.grid.push_messages(messages), nodes, strict=True))

    def _take(self, reply: Message, node: int, question: "Question", answer: Answer) -> bool:
        """Add one reply to the answer; true when the node needs the tensors sent again."""
        if reply.has_error():
            answer.troubles.append(f"node {node} failed: {reply.error.reason}")
            return False
        records = reply.content.config_records
        if "missing" in records:
            self._held.pop(node, None)
            return True
        if "refusal" in records:
            answer.troubles.append(f"node {node} refused: {records['refusal']['reason']!s}")
            return False
        try:
            update = _read(reply, question.task, question.parcels[node].tensors)
            self._know(node, update)
            if question.task.kind == "train":
                check_gradients(update, question.parcels[node].tensors)
            question.check(update)
            answer.update += update
        except (KeyError, ValueError, TesseraError) as error:
            answer.troubles.append(f"node {node} returned something malformed: {error}")
            return False
        answer.nodes += 1
        answer.bytes_up += array_bytes(reply.content)
        self._held[node] = question.parcels[node].name or self._held.get(node, "")
        return False

    def _know(self, node: int, update: Update) -> None:
        """Keep a node's client. Raises `RunError` when it sends for another than before, for another node's, or for several."""
        known, said = self._clients.get(node), next(iter(update.towers), None)
        others = {client for other, client in self._clients.items() if other != node and client}
        if len(update.towers) > 1 or (known and said != known) or said in others:
            raise RunError("it speaks for another client than its own")
        self._clients[node] = said

    def _require(self, answer: Answer, task: Task) -> None:
        for trouble in answer.troubles:
            log.warning("round %d, %s: %s", task.round, task.kind, trouble)
        for_all = task.kind in ("census", "power")
        least = max(self.settings.nodes, self.settings.min_nodes) if for_all else self.settings.min_nodes
        if answer.nodes < least:
            why = "; ".join(answer.troubles) or "no node is online"
            reason = f"round {task.round}: {answer.nodes} nodes answered to {task.kind}, {least} must: {why}"
            raise RoundAbandoned(reason) if task.kind == "train" else RunError(reason)
