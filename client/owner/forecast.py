"""Tells an owner beforehand what the policy would refuse of a run with certain settings: each kind of ask, and why.

What depends on who else is there, the people and devices of a secure sum, is taken to be enough; it is looked at when it comes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tessera.client.owner.ledger import Memory
from tessera.client.owner.policy import Policy
from tessera.client.owner.rules import RULES, Asked, Own, Refusal, Sum
from tessera.common.config.device import DeviceSettings
from tessera.common.config.effects import no_secure_sums
from tessera.common.config.settings import Settings
from tessera.common.protocol.messages import ASPECTS, BASIS, Kind, Task, basis_columns

MANY = 10**9
"""People, taken to be in a secure sum."""


@dataclass(frozen=True)
class Expected:
    """A kind of ask of a run, and what rules refuse of it: their kinds, and what they say."""

    kind: Kind
    masked: bool
    refused: tuple[tuple[Refusal, str], ...]


def forecast(policy: Policy, settings: Settings, own: Callable[[Task], Own]) -> Iterator[Expected]:
    """What the policy makes of each kind of ask of a run over gRPC; `own` is what the device knows of its part."""
    masked = bool(settings.privacy.secure) and not no_secure_sums(settings)
    for kind in _kinds(settings):
        told = DeviceSettings.of(settings)
        task = Task(kind, "forecast", settings.rounds if kind == "train" else 0, (), (), "", told)
        known = own(task)
        inputs = {}
        if kind == "power":
            n_items = len(known.counts) if known.counts is not None else 0
            width = basis_columns(min(settings.views.dim, settings.views.id_dim, n_items), n_items)
            generator = torch.Generator().manual_seed(0)
            inputs = {BASIS: torch.linalg.qr(torch.randn(n_items, width, generator=generator)).Q}
        if kind == "aspects":
            n_items = len(known.counts) if known.counts is not None else 0
            generator = torch.Generator().manual_seed(0)
            inputs = {ASPECTS + "spread": torch.randn(n_items, settings.views.dim, generator=generator)}
        sum = Sum(MANY, settings.federation.nodes, masked=True) if masked else Sum(known.people)
        asked = Asked(task, inputs, known, sum, Memory(), "", "", "", 0.0)
        yield Expected(kind, masked, tuple(found for rule in RULES for found in rule(policy, asked)))


def _kinds(settings: Settings) -> Iterator[Kind]:
    yield "item_statistics"
    if settings.views.spectral_rounds and not settings.asks_questions:
        yield "power"
    if settings.views.facets > 1 or settings.local.groups.by_sums:
        yield "aspects"
    if settings.evaluation.baselines:
        yield "baselines"
    yield from ("train", "evaluate", "select")
