"""The device's owner at the door: holds each ask against the policy, and writes down what was answered and what refused.

Around the work that a device does:

    granted = owner.check(client.own, task, inputs)
    update = client.perform(task, tensors, granted.inputs)
    owner.note(granted, update, bytes)

Simulated devices have no owner, unless a `policy.yaml` lies in their folder.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from tessera.client.device_folder import DeviceFolder
from tessera.client.owner import known_keys
from tessera.client.owner.ledger import Entry, Ledger, Memory
from tessera.client.owner.past_sums import (
    Open,
    PastSums,
    Whose,
    asked_about,
    changing_sums,
    open_key,
    read_sums,
    write_sums,
)
from tessera.client.owner.policy import Policy, read_policy
from tessera.client.owner.rules import DAY, REMEDY, Asked, Own, Refusal, Sum, asked_table, check
from tessera.client.owner.statements import believe
from tessera.common.config.device import DeviceSettings
from tessera.common.errors import ConfigError, PolicyRefused
from tessera.common.metrics.ranking import MetricSums
from tessera.common.privacy.accounting import epsilon
from tessera.common.privacy.between import HELD_BACK
from tessera.common.protocol.figures import TIED
from tessera.common.protocol.masked.key_list import KeyList
from tessera.common.protocol.messages import (
    ASPECTS,
    BASIS,
    BLOCKS,
    COUNTS,
    GROUP_CENTRES,
    GROUP_STATES,
    FacetStep,
    Masking,
    Task,
)
from tessera.common.protocol.signed.statements import Statement
from tessera.common.protocol.tensors import Tensors, content_hash
from tessera.common.protocol.updates import Update
from tessera.common.secure import roster
from tessera.common.secure.keys import node_fingerprint
from tessera.common.utils.atomic_files import digest

log = logging.getLogger("tessera.device")
SHORT = 16
"""Digits of a hash that are written down."""
INPUTS = {
    "power": (BASIS,),
    "aspects": (BLOCKS, GROUP_STATES, GROUP_CENTRES, *(ASPECTS + step for step in get_args(FacetStep))),
    "evaluate": (COUNTS,),
}
"""Which inputs a kind of task reads; baselines read all, the others none."""
OPEN = frozenset({"rounds", "device"})
"""Settings that may change within a run: they decide nothing about who and what is counted."""


@dataclass(frozen=True)
class Granted:
    """An ask that may be done: with these inputs, and what is written down once it is; None where nobody wants to know."""

    inputs: Tensors
    entry: Entry | None = None
    open: Open | None = None
    """For what may be asked the same again: what and of whom it is."""
    masking: Masking | None = None
    withheld: bool = False
    """Whether item counts stay here, since too few people came or went since they were told before."""

    def told(self, update: Update) -> Update:
        """What may leave of an answer."""
        if not self.withheld:
            return update
        figures = {name: value for name, value in update.sums.values.items() if name not in TIED.values()}
        return Update(sums=MetricSums(figures | {"withheld": 1.0}))


class Owner:
    """What the owner of a device's folder decides; `policy` is None for a simulated device, which has none."""

    def __init__(self, folder: Path, policy: Policy | None) -> None:
        self.folder, self.policy, self.ledger = folder, policy, Ledger(folder)

    @classmethod
    def of(cls, device: DeviceFolder) -> "Owner":
        """The owner of a device. Raises `PolicyRefused` where the policy cannot be read."""
        try:
            return cls(device.folder, read_policy(device.folder) if device.has_owner else None)
        except ConfigError as error:
            raise PolicyRefused("policy-file", str(error)) from None

    def believe(self, came: Statement | None, asked: Statement) -> None:
        """Let what the device is `asked` pass where the server signed it, as `came` along, or raise `PolicyRefused`, which is
        written down."""
        try:
            believe(self.folder, came, asked)
        except PolicyRefused as refused:
            kind, round, _ = asked.asks[-1]
            entry = Entry(time=time.time(), run=asked.run, catalogue="", round=round, kind=kind)
            self._refuse(entry, refused, self.ledger.memory())
            raise

    def sums(self, run: str) -> roster.Policy:
        """What the device insists on in secure sums of a run: a sum is of enough people and devices, whose keys the owner takes
        to be real, or it stays masked."""
        if self.policy is None:
            return roster.Policy(lambda keys, people, beside: None, people=1)
        people, devices = self.policy.people, self.policy.devices
        return roster.Policy(partial(self._admit, run), people, devices, read=partial(self._read, run))

    def _admit(self, run: str, nodes: Sequence[bytes], people: int, beside: bytes) -> None:
        """Hold a group's size, and its other devices' keys against those that are known, or raise `PolicyRefused`, which is
        written down."""
        assert self.policy
        others, devices = [node_fingerprint(node) for node in nodes], len(nodes) + 1
        try:
            if people < self.policy.people:
                told = (
                    f"a group of {devices} devices: {people} people on them, people is {self.policy.people}; {REMEDY}"
                )
                raise PolicyRefused("people", told)
            known_keys.admit(self.folder, self.policy, others, KeyList.read(beside) if beside else None)
        except PolicyRefused as refused:
            entry = Entry(time=time.time(), run=run, catalogue="", round=0, kind="group", devices=devices)
            self._refuse(entry, refused, self.ledger.memory())
            raise

    def _read(self, run: str, epoch: int, ask: int, others: frozenset[str], own: bool) -> None:
        """Note that a sum of these devices is read, or raise `PolicyRefused`, where it differs too little from another one."""
        with changing_sums(self.folder):
            sums = read_sums(self.folder)
            if (answer := sums.open.get(open_key(run, epoch, ask))) is None:
                return
            whose = answer.whose.among(others, own)
            if few := self._few(sums, answer.kind, answer.about, whose):
                raise PolicyRefused(HELD_BACK, f"run {run}, {answer.kind}: {few}")
            write_sums(self.folder, sums.having_read(answer.kind, answer.about, whose))

    def _few(self, sums: PastSums, kind: str, about: str, whose: Whose) -> str:
        """Why a sum would tell of a few people by its difference from another one; "" where it would not."""
        assert self.policy
        between, wanted = sums.of(kind, about).few(whose), self.policy.people
        if not 0 < between < wanted:
            return ""
        return f"{between} people came or went between this sum and an earlier one, people is {wanted}; {REMEDY}"

    def _may_repeat(self, own: Own, task: Task, sum: Sum) -> tuple[Open | None, bool]:
        """What is asked and of whom, where it may be the same again, and whether counts are to be withheld. Raises
        `PolicyRefused` where the answer would be of a few people, by its difference from an earlier one."""
        if (about := asked_about(task)) is None or not own.is_sum:
            return None, False
        whose = Whose.of(sum.others, own.here, own.who)
        few = self._few(read_sums(self.folder), task.kind, about, whose)
        alone = task.kind == "item_statistics" and not sum.masked
        if few and not alone:
            raise PolicyRefused(HELD_BACK, f"run {task.run}, round {task.round}, {task.kind}: {few}")
        return Open(kind=task.kind, about=about, whose=whose), bool(few)

    def check(self, own: Callable[[Task], Own], task: Task, inputs: Tensors, sum: Sum | None = None) -> Granted:
        """Let an ask pass, or raise `PolicyRefused`, which is written down.

        Args:
            own: What the device knows of its part in an answer.
            task: What is asked.
            inputs: What came along about items.
            sum: In which sum the server sees the answer; by default that over the people here, as it is.
        """
        if self.policy is None:
            return Granted(inputs)
        known = own(task)
        sum = sum or Sum(known.people)
        asked = _asked(known, task, inputs, sum, self.ledger.memory())
        entry = _entry(asked, self.policy)
        try:
            check(self.policy, asked)
            open, withheld = self._may_repeat(known, task, sum)
        except PolicyRefused as refused:
            self._refuse(entry, refused, asked.memory)
            raise
        return Granted(self._shown(asked), entry, open, task.masking, withheld)

    def note(self, granted: Granted, update: Update, bytes: int) -> None:
        """Write an answer down, before it is sent. Raises `PolicyRefused` where it must not leave after all: too few people
        turned out to be in it, or the budget of epsilon would be passed."""
        entry, policy = granted.entry, self.policy
        if entry is None or policy is None:
            return
        memory = self.ledger.memory()
        took_part = int(update.sums["users"]) if entry.kind == "train" and not entry.masked else entry.people
        entry = _accounted(entry.model_copy(update={"bytes": bytes, "people": took_part}), memory)
        try:
            if not entry.masked and entry.kind == "train" and update.gradients and 0 < took_part < policy.people:
                raise _refusal(entry, "people", f"only {took_part} people took part, people is {policy.people}")
            if policy.max_epsilon is not None and (entry.epsilon is None or entry.epsilon > policy.max_epsilon):
                told = "unbounded" if entry.epsilon is None else f"{entry.epsilon:.2f}"
                raise _refusal(entry, "epsilon", f"epsilon would be {told}, max_epsilon is {policy.max_epsilon:g}")
        except PolicyRefused as refused:
            self._refuse(entry, refused, memory)
            raise
        self.ledger.append(entry)
        if granted.open and not granted.withheld:
            self._remember(granted.open, entry.run, granted.masking)

    def _remember(self, answer: Open, run: str, masking: Masking | None) -> None:
        """Keep of whom an answer is: under masks till its sum is read."""
        with changing_sums(self.folder):
            sums = read_sums(self.folder)
            if masking:
                after = sums.having_masked(run, masking.epoch, masking.asks[0], answer)
            else:
                after = sums.having_read(answer.kind, answer.about, answer.whose)
            if after != sums:
                write_sums(self.folder, after)

    def _refuse(self, entry: Entry, refused: PolicyRefused, memory: Memory) -> None:
        """Write a refusal down; of a server that does not stop asking, no more a day than answers."""
        assert self.policy
        if memory.refusals_since(entry.time - DAY) < self.policy.max_asks_per_day:
            changes = {"refused": refused.kind, "reason": str(refused), "bytes": 0, "noise": None, "epsilon": 0.0}
            self.ledger.append(entry.model_copy(update=changes))

    def _shown(self, asked: Asked) -> Tensors:
        """The inputs as the device works on them: without the items that too few people here have, where a product for a
        spectral start is not masked. An item of one person's own would be that person."""
        assert self.policy
        if asked.task.kind != "power" or asked.sum.masked or asked.own.counts is None:
            return asked.inputs
        kept = (asked.own.counts >= self.policy.item_people).to(asked.inputs[BASIS])
        return {**asked.inputs, BASIS: asked.inputs[BASIS] * kept[:, None]}


def _asked(own: Own, task: Task, inputs: Tensors, sum: Sum, memory: Memory) -> Asked:
    """An ask as the rules see it; what is the same in two asks has the same hash."""
    read = {name: inputs[name] for name in INPUTS.get(task.kind, ()) if name in inputs}
    if task.kind == "baselines":
        read = dict(inputs)
    members = _hash(_fixed(task.settings).model_dump_json(exclude=set(OPEN), exclude_defaults=True))
    ask = _hash(task.kind, task.run, str(task.round), task.tensors, members, content_hash(read))
    counts = _hash(content_hash({COUNTS: inputs[COUNTS]})) if COUNTS in read else ""
    return Asked(task, inputs, own, sum, memory, ask, members, counts, time.time())


def _fixed(settings: DeviceSettings) -> DeviceSettings:
    """The settings that no server may change in a run. A clip that is found moves with each round, within the policy."""
    if not settings.privacy.clip_quantile:
        return settings
    return settings.model_copy(update={"privacy": settings.privacy.model_copy(update={"clip": 1.0})})


def _hash(*parts: str) -> str:
    return digest("\x1f".join(parts).encode())[:SHORT]


def _entry(asked: Asked, policy: Policy) -> Entry:
    """What is known of an answer before it is made. The noise is that of one person until it is known how many took part."""
    task, basis = asked.task, asked_table(asked)
    privacy = task.settings.privacy if task.kind == "train" and asked.own.is_sum else None
    return Entry(
        time=asked.now,
        run=task.run,
        catalogue=task.catalogue[:SHORT],
        round=task.round,
        kind=task.kind,
        people=asked.sum.people,
        devices=asked.sum.devices,
        masked=asked.sum.masked,
        clip=privacy.clip if privacy else 0.0,
        noise=privacy.noise_multiplier or None if privacy else None,
        shared=privacy.distributed if privacy else False,
        sampled=task.settings.fraction if privacy and privacy.distributed else 1.0,
        delta=policy.delta,
        ask=asked.ask,
        members=asked.members,
        counts=asked.counts,
        columns=basis.shape[-1] if basis is not None and basis.ndim else 0,
    )


def _accounted(entry: Entry, memory: Memory) -> Entry:
    """The entry with the noise of its sum, to which all people in it add their own where it is not shared out, and with the
    epsilon of all so far."""
    if entry.noise and not entry.shared:
        entry = entry.model_copy(update={"noise": entry.noise * math.sqrt(max(entry.people, 1))})
    if memory.exact or entry.exact:
        return entry.model_copy(update={"epsilon": None})
    releases = memory.releases + Counter(entry.releases())
    return entry.model_copy(update={"epsilon": epsilon(releases, entry.delta)})


def _refusal(entry: Entry, kind: Refusal, reason: str) -> PolicyRefused:
    return PolicyRefused(kind, f"run {entry.run}, round {entry.round}, {entry.kind}: {reason}")
