"""Sends one device other views than the rest, to read its answer out of the sum, and looks whether any that is read has it."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

from tessera.benchmarks.audit.findings import Finding, Size
from tessera.benchmarks.audit.listening import Heard, changed, listen, some_people
from tessera.client.owner.policy import Policy
from tessera.common.config.settings import Settings
from tessera.common.protocol.tensors import content_hash, from_record, to_record
from tessera.deploy.executors.inline import InlineGrid

VICTIM, NODES, ROUNDS = 1, 4, 3
"""The node that is sent other views, of so many, and rounds of training."""
PEOPLE = 40


class TwoFacedGrid(InlineGrid):
    """Devices of one process, of which one is sent twice the views that the others get."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Change what goes to the victim, with the hash that it is named by."""
        return super().push_messages([_changed(one) for one in messages])


def _changed(message: Message) -> Message:
    content = message.content
    if message.metadata.dst_node_id == VICTIM and "tensors" in content and message.metadata.message_type == "train":
        other = {
            name: value * 2 if value.is_floating_point() else value
            for name, value in from_record(content.array_records["tensors"]).items()
        }
        header = ConfigRecord({**content.config_records["task"], "tensors": content_hash(other)})
        message.content = RecordDict({**content, "task": header, "tensors": to_record(other)})
    return message


def attack_by_other_views(settings: Settings, dataset: Path, seed: int, size: Size) -> list[Finding]:
    """Listen to a few rounds, and count those in which something is read that the victim is in."""
    folder, read = Path(tempfile.mkdtemp()), set[int]()

    def ear(heard: Heard) -> None:
        if heard.kind == "train" and VICTIM in heard.nodes:
            read.add(heard.round)

    try:
        people = some_people(dataset, folder / "people", PEOPLE, seed)
        own = changed(
            settings,
            seed=seed,
            rounds=ROUNDS,
            views={"spectral_rounds": 0},
            federation={
                "nodes": NODES,
                "clients_per_round": 0,
                "over_selection": 0.0,
                "min_nodes": 1,
                "min_fraction": 0.0,
            },
            evaluation={"every": ROUNDS, "baselines": False, "patience": 0},
        )
        few = Policy(people=PEOPLE // NODES)  # so that devices answer without masks too, where an attack could succeed
        listen(own, people, folder / "run", ear, few, TwoFacedGrid)
        return [Finding("other views for one device", "rounds read", float(len(read)), float(ROUNDS), 0.0)]
    finally:
        shutil.rmtree(folder)
