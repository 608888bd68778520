"""Lists the ways to train adapters together: the settings of each, which adapters it has, and who is merged with whom.

A new one is one file in `client/methods/` and one entry below. Another package offers one as a `MethodSpec` in the
entry-point group `tessera.methods`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tessera.common.registry.component import (
    Amount,
    ComponentSettings,
    Fraction,
    FrozenSettings,
    Natural,
    Positive,
    Rate,
    Share,
    Step,
)
from tessera.common.registry.registry import Registry

Sharing = Literal["nothing", "tower", "all", "relevant", "distilled", "logits"]
Shared = Literal["pq", "pq+class"]
"""What of a branch leaves a device: P and Q alone, or plain LoRA too."""


class PQSettings(ComponentSettings):
    """Settings of methods that gate a branch of a device's own and one of what others know; PQ-LoRA is in some layers of both.

    The paper has a gate, no `union`, no `shared_rounds` and no `gate_by_instruction`, and P and Q in `queries_and_keys` too.
    """

    blocks: Natural = 4
    """Layers of a tower that carry PQ-LoRA; the others carry plain LoRA. 0: all carry plain LoRA and nothing else."""
    union: bool = True
    """Whether a layer with P and Q carries plain LoRA beside them, for devices of its class."""
    queries_and_keys: bool = False
    """Whether queries and keys of these layers carry P and Q too."""
    alignment: Literal["effects", "whitened", "paper", "random"] = "effects"
    """How A and B of towers of different size are given a common start."""
    pq_learning_rate: Step = 0.004
    """Of P, Q and the gate."""
    shared_rounds: Share = 0.5
    """Share of the rounds, the first ones, in which a device's own branch begins from what it was sent; afterwards it stays
    the device's own."""
    gate: Literal["convex", "additive", "none"] = "convex"
    """How branches are weighed, with s the sigmoid of the gate: 1 - s and s, or the own branch in full and s. none: they are
    never mixed; the own branch is trained, and answers, alone."""
    gate_per: Literal["linear", "layer"] = "linear"
    """Whether every adapted linear layer has a gate of its own, or all in one layer of the tower share one."""
    gate_start: Annotated[float, Field(ge=-20, le=20)] = 0.0
    """What a gate is before training: 0 is one half."""
    gate_by_instruction: bool = True
    """Whether a question in words that a device never learnt from is answered by what others know alone."""
    branch_dropout: Rate = 0.0
    """Chance of a batch to be learnt by the own branch alone, as if there were no other."""


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


class DistillationSettings(ComponentSettings):
    """Settings of methods that learn from what others answer to public questions."""

    public_questions: Annotated[Positive, Field(le=2000)] = 600
    """Pretext questions about the public part of the catalogue, the same for everybody; no device's own is among them."""
    distillation_steps: Natural = 40
    """Batches of them, of the size of a device's, from which each of the server's models learns in a round."""
    distillation_rate: Step = 0.0005
    """Learning rate of the server's models, the same in all rounds."""


class PerAdaSettings(DistillationSettings, DittoSettings):
    """Settings of PerAda."""


class TAKFLSettings(DistillationSettings):
    """Settings of TAKFL."""

    self_regularisation: Amount = 0.1
    """How strongly a class's model is held to the answers that it gave before it learnt from a class's devices."""


class FedMKTSettings(DistillationSettings):
    """Settings of FedMKT."""

    fine_tuning: Share = 0.9
    """Weight of the right answers, of a device's own questions or of the server's public ones; the rest is that of others'."""


class SignatureSettings(FrozenSettings):
    """What a device says of its tasks (RELA, FedMosaic Eq. 1 to 3), for methods that weigh by likeness."""

    every: Positive = 10
    """Steps between two batches whose gradient goes into it: the paper's m."""
    decay: Fraction = 0.5
    """Weight of the newest round, the paper's alpha; the first round counts in full."""
    noise: Amount = 1e-4
    """Standard deviation of the noise of each coordinate, the paper's mu."""
    kept: Fraction = 0.4
    """Share of the coordinates that are sent, the paper's N_s; the same for all devices."""
    limit: Amount = 1.0
    """Largest Euclidean norm of what is noised; 0, as in the paper: none."""
    of: Literal["frozen", "own"] = "frozen"
    """Whose gradient it is: that of the smallest tower's last layer, frozen, or of the device's own tower as it was trained.
    The latter is by the answer alone, which has one size in all towers."""


class AlignmentSettings(FrozenSettings):
    """On what, and how strictly, A and B of towers of different size are aligned."""

    questions: Positive = 600
    """Public questions that towers are aligned on, each some three positions; the size of the paper's D_p."""
    domain: Literal["both", "pictures", "texts"] = "both"
    """What these show: pictures and texts as devices' questions do, or one of them alone."""
    orthogonality: Amount = 0.5
    """How strongly the paper's alignment holds A to orthonormal rows, its lambda."""


@dataclass(frozen=True)
class MethodSpec:
    """A method: a `tessera.client.methods.Method`, named by `implementation`, and what the server makes of what it sends.

    Adapters are PQ-LoRA in the places of Eq. 6 and plain LoRA elsewhere where `settings` are `PQSettings`, and plain LoRA
    everywhere otherwise. `shares` says what the server averages: nothing; everything evenly within a device class ("tower");
    P and Q evenly over all devices and plain LoRA evenly within a class ("all"); the same weighted by relevance (RELA,
    "relevant"), which takes `FedMosaicSettings`; a class's average that then learns what devices answer to public questions
    ("distilled"), which takes `DistillationSettings`. With "logits" nothing is averaged: such answers are what is sent and what
    comes back, which takes `FedMKTSettings`. `one_branch` methods train one branch by one loss, and so can train a tower
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
        "perada": MethodSpec("tessera.client.methods.perada:PerAda", "distilled", PerAdaSettings),
        "takfl": MethodSpec("tessera.client.methods.takfl:TAKFL", "distilled", TAKFLSettings),
        "fedmkt": MethodSpec("tessera.client.methods.fedmkt:FedMKT", "logits", FedMKTSettings),
        "pq": MethodSpec("tessera.client.methods.fedmosaic:FedMosaic", "all", PQSettings, one_branch=True),
        "fedmosaic": MethodSpec(
            "tessera.client.methods.fedmosaic:FedMosaic", "relevant", FedMosaicSettings, one_branch=True
        ),
    },
)
