"""The federation's nodes as the round loop sees them: ask all of them, add up what they answer."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from common import seeds
from common.config import FederationSettings
from common.errors import RoundAbandoned, RunError, TesseraError
from common.metrics import Sums
from common.protocol import Parcel, Task, Tensors, Update, array_bytes, pack_task
from server.screening import FAILED, LATE, MALFORMED, REFUSED, REMEDIES, STRAY, Unfit, degenerate, taken

log = logging.getLogger("tessera.server")
POLL = 0.1


@dataclass
class Answer:
    """What the nodes returned to one question, added up as it came in; bytes are of tensors, over all messages.

    `dropped` counts by kind what was not added, `troubles` say why, node by node, and `lost` are the sums of what was unfit.
    """

    update: Update = field(default_factory=Update)
    nodes: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)
    lost: Sums = field(default_factory=Sums)

    def drop(self, kind: str, node: int, why: str) -> None:
        """Count something that is not added, and say why."""
        self.dropped[kind] += 1
        self.troubles.append(f"node {node} {why}")


For = Callable[[str | None], Parcel]
"""What goes to a client, or to a node of which no client is known yet."""
Check = Callable[[Update], None]
"""Raises a `TesseraError` for an update that cannot be taken."""


def nothing(client: str | None) -> Parcel:
    """No tensors."""
    return Parcel({})


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
        self._late: dict[str, int] = {}

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
        """Give nodes `task` and add up their updates as they arrive, so memory does not grow with the nodes.

        All are asked, and to train as many as the settings say. A client's parcel goes only to nodes that lack its tensors
        by their content hash; `facts` always. What is unfit, or does not pass `check`, is dropped, counted and its node named.
        Raises `RoundAbandoned` when too few answered in time (all nodes must where the answer stands for the whole run), and
        `RunError` when at least half of the answers were of no use in the same way.
        """
        answer, online = Answer(), list(self.grid.get_node_ids())
        if 0 < len(online) < self.settings.nodes:
            answer.troubles.append(f"only {len(online)} of {self.settings.nodes} nodes are online")
        asked = self._draw(online, task)
        question = Question(task, {node: parcel(self._clients.get(node)) for node in asked}, facts, check)
        waiting: dict[str, int] = {}
        for nodes in question.alike(lambda node: self._held.get(node) == question.parcels[node].name):
            waiting |= self._send(nodes, question, answer)
        self._drop_late(answer)
        self._gather(waiting, question, answer)
        self._require(answer, task)
        return answer

    def _gather(self, waiting: dict[str, int], question: Question, answer: Answer) -> None:
        """Take replies until all are in, enough are, or the time is over; nodes are `waiting` by message."""
        enough = self.settings.participants if question.task.kind == "train" else 0
        deadline, resent = time.monotonic() + self.settings.timeout, set[int]()
        while waiting and not 0 < enough <= answer.nodes:
            replies = list(self.grid.pull_messages(waiting.keys()))
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                # An error that the SuperLink reports speaks for the node that was asked.
                if node is None or (reply.has_content() and node != reply.metadata.src_node_id):
                    answer.drop(STRAY, reply.metadata.src_node_id, "answered a second time, or for another node")
                elif self._take(reply, node, question, answer):
                    if node in resent:
                        answer.drop(FAILED, node, "keeps losing the tensors it is sent")
                        continue
                    resent.add(node)
                    waiting |= self._send([node], question, answer)
            if not replies:
                if time.monotonic() > deadline:  # only now: the inline nodes answer one after the other, when asked
                    for node in waiting.values():
                        answer.drop(LATE, node, f"did not answer in {self.settings.timeout:g} s")
                    break
                time.sleep(POLL)
        self._late |= waiting

    def _draw(self, online: list[int], task: Task) -> list[int]:
        """The nodes that get `task`: all, or those whose draw for a round of training is lowest."""
        if task.kind != "train" or not self.settings.participants:
            return online
        draws = {node: seeds.key("participants", task.settings.seed, task.round, node) for node in online}
        return sorted(online, key=draws.__getitem__)[: self.settings.asked]

    def _drop_late(self, answer: Answer) -> None:
        """Drop what has come to questions that were closed without it: its round is over."""
        for reply in self.grid.pull_messages(self._late.keys()) if self._late else ():
            node = self._late.pop(reply.metadata.reply_to_message_id, None)
            if node is not None and reply.has_content():
                answer.drop(LATE, node, "answered after its round was closed")

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
            answer.drop(FAILED, node, f"failed: {reply.error.reason}")
            return False
        records = reply.content.config_records
        if "missing" in records:
            self._held.pop(node, None)
            return True
        if "refusal" in records:
            answer.drop(REFUSED, node, f"refused: {records['refusal']['reason']!s}")
            return False
        try:
            update = taken(reply.content, question.task, question.parcels[node].tensors, self.settings.largest_gradient)
            self._know(node, update)
            question.check(update)
            answer.update += update
        except Unfit as unfit:
            answer.drop(unfit.kind, node, f"returned something {unfit.kind}: {unfit}")
            answer.lost += unfit.sums
            return False
        except (KeyError, ValueError, TesseraError) as error:
            answer.drop(MALFORMED, node, f"returned something malformed: {error}")
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
        for kind, remedy in REMEDIES.items():
            if answer.dropped[kind] and answer.dropped[kind] >= answer.nodes:
                _, told = degenerate(task.kind, answer.update.sums + answer.lost) or ("", answer.troubles[-1])
                raise RunError(f"round {task.round}: {told}; {remedy}")
        for_all = task.kind in ("census", "power")
        least = max(self.settings.nodes, self.settings.min_nodes) if for_all else self.settings.min_nodes
        least = self.settings.least if task.kind == "train" else least
        if answer.nodes < least:
            why = "; ".join(answer.troubles) or "no node is online"
            reason = f"round {task.round}: {answer.nodes} nodes answered to {task.kind}, {least} must: {why}"
            raise RoundAbandoned(reason)
