"""Lists the prediction models: the settings of each, and what it asks the server to broadcast beside the views.

A new one is one file in `client/backbones/` and one entry below. Another package offers one as a `BackboneSpec` in the
entry-point group `tessera.backbones`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tessera.common.registry.component import Amount, ComponentSettings, QuerySettings, Shared, SharedTensors, Step
from tessera.common.registry.registry import Registry
from tessera.common.registry.sequences import GRU4RecSettings, SASRecSettings, gru4rec_tensors, sasrec_tensors


class FCFSettings(ComponentSettings):
    """Settings of FCF, whose user factor is solved for on the device."""

    confidence: Amount = 10.0
    """How much more an event counts than anything else."""
    ridge: Amount = 1.0
    """Weight of the user factor's squared norm."""


class CosineSettings(QuerySettings):
    """Settings of cosines between items and histories."""

    temperature: Step = 0.1
    """What cosines are divided by: the smaller, the more the best items count."""


class FedRAPSettings(ComponentSettings):
    """Settings of FedRAP."""

    difference_weight: Amount = 0.1
    """How much personal and common items are pushed apart."""
    l1_weight: Amount = 0.1
    """Weight of the common items' absolute size."""


def nothing(dim: int, settings: ComponentSettings) -> SharedTensors:
    """Nothing is shared beside the views."""
    return {}


def ncf_tensors(dim: int, settings: ComponentSettings) -> SharedTensors:
    """The shared MLP of FedNCF over [user, item]: 2 dim -> dim -> dim / 2 -> 1."""
    half = max(1, dim // 2)
    shapes: dict[str, tuple[int, ...]] = {
        "ncf_user": (dim, dim), "ncf_item": (dim, dim), "ncf_bias": (dim,),
        "ncf_hidden": (half, dim), "ncf_hidden_bias": (half,), "ncf_out": (half,),
    }  # fmt: skip
    return {name: Shared(shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone: a `tessera.client.backbones.Backbone`, named by `implementation`, and what both sides must know of it.

    `history` asks the server for a history view; `reads_history` says that the model looks at the user's events by itself, and
    `asks_next` that it can be asked for the event that follows some of them. `unit_views` asks for views with rows of length 1,
    and `views_alone` says that it can compare histories and items by each view alone.
    `shared` gives the head that is broadcast, learnt and aggregated like the views, by its `dim` and the settings.
    """

    implementation: str
    settings: type[ComponentSettings] = ComponentSettings
    history: bool = False
    reads_history: bool = False
    asks_next: bool = False
    unit_views: bool = False
    views_alone: bool = False
    shared: Callable[[int, Any], SharedTensors] = nothing


BACKBONES = Registry(
    "backbone",
    "tessera.backbones",
    BackboneSpec,
    {
        "fedavg": BackboneSpec("tessera.client.backbones.fedavg:FedAvg"),
        "fcf": BackboneSpec("tessera.client.backbones.fcf:FCF", FCFSettings, reads_history=True),
        "fedncf": BackboneSpec("tessera.client.backbones.fedncf:FedNCF", shared=ncf_tensors),
        "pfedrec": BackboneSpec("tessera.client.backbones.pfedrec:PFedRec"),
        "fedrap": BackboneSpec("tessera.client.backbones.fedrap:FedRAP", FedRAPSettings),
        "history": BackboneSpec(
            "tessera.client.backbones.history:History",
            QuerySettings,
            history=True,
            reads_history=True,
            asks_next=True,
        ),
        "cosine": BackboneSpec(
            "tessera.client.backbones.cosine:Cosine",
            CosineSettings,
            reads_history=True,
            asks_next=True,
            unit_views=True,
            views_alone=True,
        ),
        "sasrec": BackboneSpec(
            "tessera.client.backbones.sasrec:SASRec",
            SASRecSettings,
            history=True,
            reads_history=True,
            asks_next=True,
            shared=sasrec_tensors,
        ),
        "gru4rec": BackboneSpec(
            "tessera.client.backbones.gru4rec:GRU4Rec",
            GRU4RecSettings,
            history=True,
            reads_history=True,
            asks_next=True,
            shared=gru4rec_tensors,
        ),
    },
)
