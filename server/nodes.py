"""The federation's nodes as the round loop sees them: ask all of them, add up what they answer."""

import logging
import time
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.config import FederationSettings
from common.errors import RoundAbandoned, RunError, TesseraError
from common.protocol import Task, Tensors, Update, array_bytes, check_gradients, pack_task, unpack_update

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


class Nodes:
    """All nodes of a federation, over Flower's Grid."""

    def __init__(self, grid: Grid, settings: FederationSettings) -> None:
        self.grid, self.settings = grid, settings
        self._held: dict[int, str] = {}

    def wait(self) -> None:
        """Wait until as many nodes as the settings say are online. Raises `RunError` when they are not in time."""
        deadline = time.monotonic() + self.settings.timeout
        while (online := len(list(self.grid.get_node_ids()))) < self.settings.nodes:
            if time.monotonic() > deadline:
                raise RunError(
                    f"only {online} of {self.settings.nodes} nodes came online in {self.settings.timeout:g} s"
                )
            time.sleep(POLL)

    def ask(self, task: Task, tensors: Tensors | None = None, facts: Tensors | None = None) -> Answer:
        """Give every node `task` and add up their updates as they arrive, so memory does not grow with the nodes.

        `tensors` go only to nodes that lack them by their content hash; `facts` always. What is malformed is left out and
        its node named. Raises `RoundAbandoned` when too few answered to train on, and `RunError` when too few did to
        anything else before the timeout: `min_nodes`, and all nodes where the answer stands for the whole run.
        """
        answer, online = Answer(), list(self.grid.get_node_ids())
        if 0 < len(online) < self.settings.nodes:
            answer.troubles.append(f"only {len(online)} of {self.settings.nodes} nodes are online")
        holding = [node for node in online if tensors is not None and self._held.get(node) == task.tensors]
        lacking = [node for node in online if node not in holding]
        full = pack_task(task, tensors, facts)
        waiting = self._send(lacking, full, task, answer)
        if holding:
            waiting |= self._send(holding, pack_task(task, None, facts), task, answer)
        deadline, resent = time.monotonic() + self.settings.timeout, set[int]()
        while waiting:
            replies = list(self.grid.pull_messages(waiting.keys()))
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id)
                if self._take(reply, node, task, tensors or {}, answer) and node not in resent:
                    resent.add(node)
                    waiting |= self._send([node], full, task, answer)
            if not replies:
                if time.monotonic() > deadline:  # only now: the inline nodes answer one after the other, when asked
                    break
                time.sleep(POLL)
        answer.troubles += [f"node {node} did not answer in {self.settings.timeout:g} s" for node in waiting.values()]
        self._require(answer, task)
        return answer

    def _send(self, nodes: list[int], content: RecordDict, task: Task, answer: Answer) -> dict[str, int]:
        kind = task.kind if task.kind in ("train", "evaluate") else "query"
        messages = [Message(content, node, kind, group_id=str(task.round)) for node in nodes]
        answer.bytes_down += array_bytes(content) * len(nodes)
        return dict(zip(self.grid.push_messages(messages), nodes, strict=True))

    def _take(self, reply: Message, node: int, task: Task, tensors: Tensors, answer: Answer) -> bool:
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
            update = unpack_update(reply.content)
            if task.kind == "train":
                check_gradients(update, tensors)
            answer.update += update
        except (KeyError, ValueError, TesseraError) as error:
            answer.troubles.append(f"node {node} returned something malformed: {error}")
            return False
        answer.nodes += 1
        answer.bytes_up += array_bytes(reply.content)
        self._held[node] = task.tensors or self._held.get(node, "")
        return False

    def _require(self, answer: Answer, task: Task) -> None:
        for trouble in answer.troubles:
            log.warning("round %d, %s: %s", task.round, task.kind, trouble)
        for_all = task.kind in ("census", "power")
        least = max(self.settings.nodes, self.settings.min_nodes) if for_all else self.settings.min_nodes
        if answer.nodes < least:
            why = "; ".join(answer.troubles) or "no node is online"
            reason = f"round {task.round}: {answer.nodes} nodes answered to {task.kind}, {least} must: {why}"
            raise RoundAbandoned(reason) if task.kind == "train" else RunError(reason)
