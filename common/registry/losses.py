"""Lists the losses that devices train by: the settings of each, and whether it asks for one event from those before it.

A new one is one function in `client/losses.py` and one entry below. Another package offers one as a `LossSpec` in the
entry-point group `tessera.losses`.
"""

from dataclasses import dataclass
from typing import Literal

from tessera.common.registry.component import Amount, ComponentSettings, Positive, Step
from tessera.common.registry.registry import Registry


class BCESettings(ComponentSettings):
    """Settings of binary cross-entropy with sampled negatives."""

    negatives: Positive = 4
    """Sampled negatives for each event."""


class SquaresSettings(ComponentSettings):
    """Settings of confidence-weighted squares."""

    confidence: Amount = 10.0
    """How much more an event counts than anything else."""


class NextItemSettings(ComponentSettings):
    """Settings of a loss that asks for the next event."""

    next_item_samples: Positive = 8
    """How many events of each user are asked for in a local step."""


class CRTRSettings(NextItemSettings):
    """Settings of losses that hold views against one another."""

    drawn_items: Positive = 256
    """How many items views are compared on, the same for everybody, drawn anew in each local step; at most all."""
    relation_temperature: Step = 1.0
    """What cosines are divided by where views are to agree: the smaller, the more the nearest items count."""
    guide: Literal["both", "strong"] = "both"
    """Whether views move towards each other, or the others towards the one that tells the next event apart best."""


class WPCLSettings(CRTRSettings):
    """Settings of contrasts that weigh by how far a person's weakest view is behind."""

    penalty: Amount = 1.0
    """How much a gap between views adds to the weight of negatives; 0: nothing, as in `next`."""
    penalty_slope: Amount = 5.0
    """How fast it adds with the gap."""
    hold_strong: bool = True
    """Whether the gap closes by the weak view alone; otherwise also by making the strong one worse (an ablation)."""
    relation: Amount = 0.0
    """How much `crtr` counts beside it."""


@dataclass(frozen=True)
class LossSpec:
    """A loss: a function like those of `tessera.client.losses`, named by `implementation`.

    Where `settings` are `NextItemSettings`, histories are cut at drawn places and the loss is given the one event that
    follows each cut; that takes a backbone that scores by the events before. Where they are `CRTRSettings`, the backbone
    must be able to compare by each view alone, and there must be several.
    """

    implementation: str
    settings: type[ComponentSettings] = ComponentSettings

    @property
    def next_item(self) -> bool:
        """Whether it asks for one event from those before it, and not for all of the history."""
        return issubclass(self.settings, NextItemSettings)

    @property
    def views_alone(self) -> bool:
        """Whether it looks at each view by itself."""
        return issubclass(self.settings, CRTRSettings)


LOSSES = Registry(
    "loss",
    "tessera.losses",
    LossSpec,
    {
        "softmax": LossSpec("tessera.client.losses:softmax"),
        "next": LossSpec("tessera.client.losses:softmax", NextItemSettings),
        "wpcl": LossSpec("tessera.client.contrast.objectives:wpcl", WPCLSettings),
        "crtr": LossSpec("tessera.client.contrast.objectives:crtr", CRTRSettings),
        "bce": LossSpec("tessera.client.losses:bce", BCESettings),
        "squares": LossSpec("tessera.client.losses:squares", SquaresSettings),
    },
)
