"""Lists the losses that devices train by: the settings of each, and whether it asks for one event from those before it.

A new one is one function in `client/losses.py` and one entry below. Another package offers one as a `LossSpec` in the
entry-point group `tessera.losses`.
"""

from dataclasses import dataclass

from tessera.common.registry.component import Amount, ComponentSettings, Positive
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


@dataclass(frozen=True)
class LossSpec:
    """A loss: a function like those of `tessera.client.losses`, named by `implementation`.

    Where `settings` are `NextItemSettings`, histories are cut at drawn places and the loss is given the one event that
    follows each cut; that takes a backbone that scores by the events before.
    """

    implementation: str
    settings: type[ComponentSettings] = ComponentSettings

    @property
    def next_item(self) -> bool:
        """Whether it asks for one event from those before it, and not for all of the history."""
        return issubclass(self.settings, NextItemSettings)


LOSSES = Registry(
    "loss",
    "tessera.losses",
    LossSpec,
    {
        "softmax": LossSpec("tessera.client.losses:softmax"),
        "next": LossSpec("tessera.client.losses:softmax", NextItemSettings),
        "bce": LossSpec("tessera.client.losses:bce", BCESettings),
        "squares": LossSpec("tessera.client.losses:squares", SquaresSettings),
    },
)
