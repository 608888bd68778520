"""Lists the prediction models: the settings of each, and what it asks the server to broadcast beside the views.

A new one is one file in `client/backbones/` and one entry below. Another package offers one as a `BackboneSpec` in the
entry-point group `tessera.backbones`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tessera.common.registry.component import Amount, ComponentSettings, Step
from tessera.common.registry.registry import Registry

Shapes = dict[str, tuple[int, ...]]


class FCFSettings(ComponentSettings):
    """Settings of FCF, whose user factor is solved for on the device."""

    confidence: Amount = 10.0
    """How much more an event counts than anything else."""
    ridge: Amount = 1.0
    """Weight of the user factor's squared norm."""


class CosineSettings(ComponentSettings):
    """Settings of cosines between items and histories."""

    temperature: Step = 0.1
    """What cosines are divided by: the smaller, the more the best items count."""


class FedRAPSettings(ComponentSettings):
    """Settings of FedRAP."""

    difference_weight: Amount = 0.1
    """How much personal and common items are pushed apart."""
    l1_weight: Amount = 0.1
    """Weight of the common items' absolute size."""


def no_shapes(dim: int) -> Shapes:
    """Nothing is shared beside the views."""
    return {}


def ncf_shapes(dim: int) -> Shapes:
    """Shapes of the shared MLP of FedNCF over [user, item]: 2 dim -> dim -> dim / 2 -> 1."""
    half = max(1, dim // 2)
    return {
        "ncf_user": (dim, dim), "ncf_item": (dim, dim), "ncf_bias": (dim,),
        "ncf_hidden": (half, dim), "ncf_hidden_bias": (half,), "ncf_out": (half,),
    }  # fmt: skip


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone: a `tessera.client.backbones.Backbone`, named by `implementation`, and what both sides must know of it.

    `history` asks the server for a history view; `reads_history` says that the model looks at the user's events by itself, and
    `asks_next` that it can be asked for the event that follows some of them. `unit_views` asks for views with rows of length 1.
    `shared` gives the shapes of a head that is broadcast, learnt and aggregated like the views.
    """

    implementation: str
    settings: type[ComponentSettings] = ComponentSettings
    history: bool = False
    reads_history: bool = False
    asks_next: bool = False
    unit_views: bool = False
    shared: Callable[[int], Shapes] = no_shapes


BACKBONES = Registry(
    "backbone",
    "tessera.backbones",
    BackboneSpec,
    {
        "fedavg": BackboneSpec("tessera.client.backbones.fedavg:FedAvg"),
        "fcf": BackboneSpec("tessera.client.backbones.fcf:FCF", FCFSettings, reads_history=True),
        "fedncf": BackboneSpec("tessera.client.backbones.fedncf:FedNCF", shared=ncf_shapes),
        "pfedrec": BackboneSpec("tessera.client.backbones.pfedrec:PFedRec"),
        "fedrap": BackboneSpec("tessera.client.backbones.fedrap:FedRAP", FedRAPSettings),
        "history": BackboneSpec(
            "tessera.client.backbones.history:History", history=True, reads_history=True, asks_next=True
        ),
        "cosine": BackboneSpec(
            "tessera.client.backbones.cosine:Cosine",
            CosineSettings,
            reads_history=True,
            asks_next=True,
            unit_views=True,
        ),
    },
)
