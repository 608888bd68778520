"""Lists the ways to train adapters together: the settings of each, which adapters it has, and who is merged with whom.

A new one is one file in `client/methods/` and one entry below. Another package offers one as a `MethodSpec` in the
entry-point group `tessera.methods`.
"""

from dataclasses import dataclass
from typing import Literal

from tessera.common.registry.component import Amount, ComponentSettings, Positive, Step
from tessera.common.registry.registry import Registry

Sharing = Literal["nothing", "tower", "all", "relevant"]


class PQSettings(ComponentSettings):
    """Settings of methods whose adapters are PQ-LoRA in some layers."""

    blocks: Positive = 4
    """Layers of a tower that carry PQ-LoRA; the others carry plain LoRA."""
    alignment: Literal["effects", "whitened", "paper", "random"] = "effects"
    """How A and B of towers of different size are given a common start."""
    pq_learning_rate: Step = 0.004
    """Of P, Q and the gate."""


class FedMosaicSettings(PQSettings):
    """Settings of FedMosaic, which weighs modules by how alike the devices' tasks are."""

    temperature: Step = 0.5
    """How sharply likeness tells devices apart: the less, the more the most alike count."""
    include_self: bool = False
    """Whether a client's own module counts in what it gets back."""


class DittoSettings(ComponentSettings):
    """Settings of DITTO."""

    proximity: Amount = 0.1
    """How strongly a personal branch is held to the common one."""


@dataclass(frozen=True)
class MethodSpec:
    """A method: a `tessera.client.methods.Method`, named by `implementation`, and what the server makes of what it sends.

    Adapters are PQ-LoRA in the places of Eq. 6 and plain LoRA elsewhere where `settings` are `PQSettings`, and plain LoRA
    everywhere otherwise. `shares` says what the server averages: nothing; everything evenly within a device class ("tower");
    P and Q evenly over all devices and plain LoRA evenly within a class ("all"); the same weighted by relevance (RELA,
    "relevant"), which takes `FedMosaicSettings`. `one_branch` methods train one branch by one loss, and so can train a tower
    by the gradient of its view.
    """

    implementation: str
    shares: Sharing
    settings: type[ComponentSettings] = ComponentSettings
    one_branch: bool = False

    @property
    def pq(self) -> bool:
        """Whether adapters are PQ-LoRA in some layers."""
        return issubclass(self.settings, PQSettings)


METHODS = Registry(
    "method",
    "tessera.methods",
    MethodSpec,
    {
        "sft": MethodSpec("tessera.client.methods.sft:SFT", "nothing", one_branch=True),
        "fedit": MethodSpec("tessera.client.methods.fedit:FedIT", "tower"),
        "ditto": MethodSpec("tessera.client.methods.ditto:Ditto", "tower", DittoSettings),
        "fedsim": MethodSpec("tessera.client.methods.fedsim:FedSim", "tower"),
        "feddpa": MethodSpec("tessera.client.methods.feddpa:FedDPA", "tower"),
        "feddat": MethodSpec("tessera.client.methods.feddat:FedDAT", "tower"),
        "pq": MethodSpec("tessera.client.methods.fedmosaic:FedMosaic", "all", PQSettings, one_branch=True),
        "fedmosaic": MethodSpec(
            "tessera.client.methods.fedmosaic:FedMosaic", "relevant", FedMosaicSettings, one_branch=True
        ),
    },
)
