"""Holds what a server asks against a device's policy: one function a rule, each of which says what it refuses, and why.

The kinds of refusal are all that a server hears of one. They say nothing of anybody: each depends on the ask, on the policy,
on the number of answers so far, or on whether the people here are fewer than the policy wants.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from tessera.client.owner.ledger import Memory, RunMemory
from tessera.client.owner.policy import Policy
from tessera.common.errors import PolicyRefused
from tessera.common.protocol.messages import ASPECTS, BASIS, COUNTS, GROUP_STATES, FacetStep, Task
from tessera.common.protocol.tensors import Tensors
from tessera.common.registry.losses import BCESettings, NextItemSettings

Refusal = Literal[
    "policy-file",
    "kind",
    "secure",
    "people",
    "devices",
    "newcomers",
    "operator-list",
    "unlisted",
    "adapters",
    "members",
    "cold-users",
    "counts",
    "repeats",
    "rounds",
    "asks-per-day",
    "local-epochs",
    "next-item-samples",
    "negatives",
    "clip",
    "noise",
    "epsilon",
    "basis",
    "columns",
    "power-asks",
    "aspect-asks",
    "views",
    "held-back",
    "server-key",
    "statement",
]
"""What a server may hear of a refusal."""
VERSIONS = 3
"""Different asks of one kind that are answered in a round: a resumed run repeats rounds, and may come to other views."""
DAY = 24 * 3600.0
ORTHONORMAL = 1e-3
"""How far B^T B may be from the identity, in each entry: rounding is a thousandth of that."""
SINGLE = 0.9
"""Largest share of a column of B that one item may have: more asks for the people of that item alone."""
REMEDY = (
    "the fewer are in a sum the more it tells of each; if that is all right: "
    "tessera device policy set people=NUMBER --data-dir DEVICE"
)
"""What an owner may do whose device refuses sums for being of too few."""
ROUNDING = 0.5
"""Counts are whole numbers, which may come from a sum in fixed point."""


@dataclass(frozen=True)
class Own:
    """What a device knows of its own part in an answer: how many people are in it, and how often they have each item."""

    people: int
    counts: Tensor | None = None
    is_sum: bool = True
    """Whether it is one over people; what a device that answers questions sends is its own."""
    here: int = 0
    """How many people are on the device, in whatever part."""
    who: str = ""
    """A hash of who they are, which tells nobody anything but whether they are the same."""


@dataclass(frozen=True)
class Sum:
    """What a server gets to see an answer in: a sum over so many people and devices, under masks or as it is."""

    people: int
    devices: int = 1
    masked: bool = False
    others: Mapping[str, int] = field(default_factory=dict)
    """Of a secure sum by the fingerprints of their keys, how many people its other devices registered with."""


@dataclass(frozen=True)
class Asked:
    """An ask as the rules see it, with what came along, what is known of the people here, and what was answered before."""

    task: Task
    inputs: Tensors
    own: Own
    sum: Sum
    memory: Memory
    ask: str
    members: str
    counts: str
    now: float

    @property
    def run(self) -> RunMemory:
        """What was answered in this run."""
        return self.memory.of(self.task.run)


Found = Iterator[tuple[Refusal, str]]
"""What a rule refuses: its kind, and what it says to the owner."""
Rule = Callable[[Policy, Asked], Found]


def check(policy: Policy, asked: Asked) -> None:
    """Raise `PolicyRefused` for the first rule that refuses."""
    for rule in RULES:
        for kind, reason in rule(policy, asked):
            raise PolicyRefused(kind, f"run {asked.task.run}, round {asked.task.round}, {asked.task.kind}: {reason}")


def _kind(policy: Policy, asked: Asked) -> Found:
    if asked.task.kind not in policy.answers:
        yield "kind", f"answers does not list {asked.task.kind}"


def _limits(policy: Policy, asked: Asked) -> Found:
    """How much is answered at all."""
    day = asked.memory.answers_since(asked.now - DAY)
    if day >= policy.max_asks_per_day:
        yield "asks-per-day", f"{day} answers in 24 hours, max_asks_per_day is {policy.max_asks_per_day}"
    if asked.task.round > policy.max_rounds:
        yield "rounds", f"max_rounds is {policy.max_rounds}"
    run, place = asked.run, (asked.task.round, asked.task.kind)
    again = run.same[asked.ask]
    if again >= policy.max_repeats:
        yield "repeats", f"the very same was answered {again} times, max_repeats is {policy.max_repeats}"
    if asked.task.kind not in ("power", "aspects") and not again and run.versions[place] >= VERSIONS:
        yield "repeats", f"{run.versions[place]} different asks of this kind were answered in this round"


def _members(policy: Policy, asked: Asked) -> Found:
    """Who and what is counted is fixed by the first ask of a run, and is not the server's to choose."""
    settings = asked.task.settings
    if settings.data.cold_users and not policy.cold_users:
        yield (
            "cold-users",
            f"data.cold_users is {settings.data.cold_users:g}, which leaves people of the server's choice out",
        )
    if asked.run.members not in ("", asked.members):
        yield "members", "other settings than this run began with would count other people, or other things of them"


def _people(policy: Policy, asked: Asked) -> Found:
    """How many there must be in a sum, and under what it must leave."""
    if asked.task.kind == "select":
        return
    sum, wanted = asked.sum, policy.people
    if asked.task.settings.strategy_spec.has_towers and not policy.adapters:
        yield "adapters", "adapters of this device's own tower leave in no sum, and adapters is false"
    if not asked.own.is_sum:
        return
    if not sum.masked and policy.secure == "required":
        yield "secure", "secure is required, and this is no secure sum"
    if sum.people < wanted:
        where = f"on the {sum.devices} devices of the secure sum" if sum.masked else "here, in no secure sum"
        yield "people", f"{sum.people} people {where}, people is {wanted}; {REMEDY}"
    if sum.masked and sum.devices < policy.devices:
        yield "devices", f"{sum.devices} devices in the secure sum, devices is {policy.devices}"


def _training(policy: Policy, asked: Asked) -> Found:
    """Ceilings and floors of the settings of training."""
    if asked.task.kind != "train" or not asked.own.is_sum:
        return
    local, privacy = asked.task.settings.local, asked.task.settings.privacy
    if local.local_epochs > policy.max_local_epochs:
        yield "local-epochs", f"local.local_epochs is {local.local_epochs}, the most is {policy.max_local_epochs}"
    if isinstance(local.loss, NextItemSettings) and local.loss.next_item_samples > policy.max_next_item_samples:
        told = f"next_item_samples is {local.loss.next_item_samples}, the most is {policy.max_next_item_samples}"
        yield "next-item-samples", told
    if isinstance(local.loss, BCESettings) and local.loss.negatives > policy.max_negatives:
        yield "negatives", f"negatives is {local.loss.negatives}, the most is {policy.max_negatives}"
    if privacy.clip > policy.max_clip:
        yield "clip", f"privacy.clip is {privacy.clip:g}, which bounds nothing; the most is {policy.max_clip:g}"
    if privacy.noise_multiplier < policy.min_noise_multiplier:
        told = f"privacy.noise_multiplier is {privacy.noise_multiplier:g}, the least is {policy.min_noise_multiplier:g}"
        yield "noise", told
    if privacy.distributed and not asked.sum.masked:
        yield "noise", "privacy.noise is distributed, which is added under masks, and this is no secure sum"
    if privacy.distributed and privacy.noise_share > policy.max_noise_share:
        told = f"privacy.noise_share is {privacy.noise_share:g}, the most is {policy.max_noise_share:g}"
        yield "noise", told


def _counts(policy: Policy, asked: Asked) -> Found:
    """Item counts decide who is counted as cold: they are those that the run's devices gave, and stay the same in a run."""
    sent = asked.inputs.get(COUNTS)
    if sent is None or asked.task.kind not in ("evaluate", "baselines"):
        return
    own = asked.own.counts
    if own is not None and (sent.shape != own.shape or not bool((sent.cpu() >= own - ROUNDING).all())):
        yield "counts", "the item counts that came are not those of the run: there are fewer of an item than here alone"
    if asked.run.counts not in ("", asked.counts):
        yield "counts", "other item counts than the run's first ones would tell held-out items apart"


def _power(policy: Policy, asked: Asked) -> Found:
    """Products for a spectral start: of how many columns, over how many people, and of what."""
    if asked.task.kind != "power":
        return
    basis, run = asked.inputs.get(BASIS), asked.run
    if not policy.max_power_asks:
        yield "power-asks", "max_power_asks is 0"
    if not run.same[asked.ask] and run.versions[asked.task.round, "power"] >= policy.max_power_asks:
        yield "power-asks", f"max_power_asks is {policy.max_power_asks}"
    if basis is None or basis.ndim != 2 or not basis.is_floating_point() or not bool(basis.isfinite().all()):
        yield "basis", "the basis is no table of finite numbers"
        return
    if basis.shape[1] > policy.max_basis_columns:
        yield "columns", f"the basis has {basis.shape[1]} columns, the most is {policy.max_basis_columns}"
        return
    told = basis.shape[1] + (0 if run.same[asked.ask] else run.columns)
    if not asked.sum.masked and asked.sum.people < policy.people_per_column * told:
        yield (
            "people",
            f"{asked.sum.people} people for {told} columns in this run, in no secure sum: histories come out",
        )
    if asked.sum.masked and asked.sum.people < basis.shape[1]:
        yield "people", f"{asked.sum.people} people for {basis.shape[1]} columns: histories come out"
    gram = basis.double().T @ basis.double()
    if float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max()) > ORTHONORMAL:
        yield "basis", "the columns of the basis are not orthonormal"
    if len(basis) > 1 and float((basis**2).amax()) > SINGLE:
        yield "basis", "a column of the basis asks for one item alone"


def asked_table(asked: Asked) -> Tensor | None:
    """The table [n_items, width] about which a product or a step is asked; None where there is none."""
    names = {"power": (BASIS,), "aspects": (GROUP_STATES, *(ASPECTS + step for step in get_args(FacetStep)))}
    found = [asked.inputs[name] for name in names.get(asked.task.kind, ()) if name in asked.inputs]
    return found[0] if len(found) == 1 else None


def _aspects(policy: Policy, asked: Asked) -> Found:
    """Steps in which sides of items are found: of how many dimensions, over how many people, and of what."""
    if asked.task.kind != "aspects":
        return
    table, run = asked_table(asked), asked.run
    if not run.same[asked.ask] and run.versions[asked.task.round, "aspects"] >= policy.max_aspect_asks:
        yield "aspect-asks", f"max_aspect_asks is {policy.max_aspect_asks}"
    if table is None or table.ndim != 2 or not table.is_floating_point() or not bool(table.isfinite().all()):
        yield "basis", "what is asked about is no table of finite numbers"
        return
    if table.shape[1] > policy.max_basis_columns:
        yield "columns", f"the table has {table.shape[1]} columns, the most is {policy.max_basis_columns}"
        return
    told = table.shape[1] + (0 if run.same[asked.ask] else run.columns)
    if not asked.sum.masked and asked.sum.people < policy.people_per_column * told:
        yield "people", f"{asked.sum.people} people for {told} columns in this run, in no secure sum: tastes come out"
    if asked.sum.masked and asked.sum.people < table.shape[1]:
        yield "people", f"{asked.sum.people} people for {table.shape[1]} columns: tastes come out"
    shares = table.double() ** 2
    if len(table) > 1 and float((shares / shares.sum(0).clamp(min=1e-300)).amax()) > SINGLE:
        yield "basis", "a column of the table asks for one item alone"


def _epsilon(policy: Policy, asked: Asked) -> Found:
    """A budget of epsilon leaves no room for what is exact."""
    training = asked.task.kind == "train"
    noised = training and asked.task.settings.privacy.noise_multiplier > 0
    if policy.max_epsilon is None or asked.task.kind == "select" or noised:
        return
    if training:
        yield "epsilon", "training without noise has no epsilon, and max_epsilon is set"
    if not asked.sum.masked:
        yield "epsilon", "an exact answer outside a secure sum has no epsilon, and max_epsilon is set"


RULES: tuple[Rule, ...] = (_kind, _members, _people, _training, _counts, _power, _aspects, _epsilon, _limits)
