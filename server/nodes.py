"""The federation's nodes as the round loop sees them: ask all of them, add up what they answer."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.config import FederationSettings
from common.errors import RunError
from common.protocol import Task, Tensors, Update, array_bytes, pack_task, unpack_update

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

        `tensors` go only to nodes that lack them by their content hash; `facts` always. Raises `RunError` when fewer
        than `min_nodes` answered before the timeout.
        """
        deadline = time.monotonic() + self.settings.timeout
        answer = Answer()
        lacking = [node for node in self.grid.get_node_ids() if tensors is None or self._held.get(node) != task.tensors]
        holding = [node for node in self.grid.get_node_ids() if node not in lacking]
        waiting = self._send(dict.fromkeys(holding, pack_task(task, None, facts)), task, answer)
        waiting |= self._send(dict.fromkeys(lacking, pack_task(task, tensors, facts)), task, answer)
        while waiting and time.monotonic() < deadline:
            replies = list(self.grid.pull_messages(waiting.keys()))
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id)
                if self._take(reply, node, task, answer):
                    self._held.pop(node, None)
                    waiting |= self._send({node: pack_task(task, tensors, facts)}, task, answer)
            if not replies:
                time.sleep(POLL)
        answer.troubles += [f"node {node} did not answer in {self.settings.timeout:g} s" for node in waiting.values()]
        return self._enough(answer, task)

    def _send(self, contents: Mapping[int, RecordDict], task: Task, answer: Answer) -> dict[str, int]:
        kind = task.kind if task.kind in ("train", "evaluate") else "query"
        messages = [Message(content, node, kind, group_id=str(task.round)) for node, content in contents.items()]
        answer.bytes_down += sum(array_bytes(content) for content in contents.values())
        return dict(zip(self.grid.push_messages(messages), contents, strict=True))

    def _take(self, reply: Message, node: int, task: Task, answer: Answer) -> bool:
        """Add one reply to the answer; true when the node needs the tensors sent again."""
        if reply.has_error():
            answer.troubles.append(f"node {node} failed: {reply.error.reason}")
            return False
        if "missing" in reply.content.config_records:
            return True
        if "refusal" in reply.content.config_records:
            answer.troubles.append(f"node {node} refused: {reply.content.config_records['refusal']['reason']!s}")
            return False
        answer.update += unpack_update(reply.content)
        answer.nodes += 1
        answer.bytes_up += array_bytes(reply.content)
        self._held[node] = task.tensors
        return False

    def _enough(self, answer: Answer, task: Task) -> Answer:
        for trouble in answer.troubles:
            log.warning("round %d, %s: %s", task.round, task.kind, trouble)
        if answer.nodes < self.settings.min_nodes:
            why = "; ".join(answer.troubles) or "no node is online"
            raise RunError(
                f"round {task.round}: {answer.nodes} nodes answered to {task.kind}, {self.settings.min_nodes} must: {why}"
            )
        return answer
