"""The settings of adapted towers: who has which, what adapters are made of, and how devices learn from one another."""

import math
from typing import Annotated, Literal

from pydantic import Field

from tessera.common.config.components import Method
from tessera.common.registry.component import FrozenSettings, Natural, Positive, Step
from tessera.common.registry.methods import (
    METHODS,
    AlignmentSettings,
    FedMosaicSettings,
    MethodSpec,
    PQSettings,
    Shared,
    SignatureSettings,
)

DeviceClass = Literal["tiny", "small", "base"]


class MosaicSettings(FrozenSettings):
    """How devices of different classes adapt their towers and learn from one another (FedMosaic)."""

    classes: Annotated[tuple[DeviceClass, ...], Field(min_length=1)] = ("tiny", "small", "base")
    """The nodes' device classes, given out in turn."""
    method: Method = FedMosaicSettings(name="fedmosaic")
    """How a device trains its branches, and what becomes of what it sends."""
    rank: Positive = 16
    """Rank of LoRA, and size of P and Q."""
    largest: Step = 1000.0
    """A tensor with a larger Euclidean norm is refused."""
    stream: Literal["static", "dynamic"] = "static"
    """Whether a device's tasks come mixed, or one after the other over the rounds; what was seen stays in memory."""
    steps: Positive = 40
    """Batches of a round that a device learns from."""
    batch: Positive = 16
    """Questions in a batch."""
    questions: Natural = 0
    """How many of its own questions a device learns from, drawn by their place; 0: all of them."""
    learning_rate: Step = 0.001
    """Of A and B of plain LoRA."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Whether all rates stay, or fall over the rounds: of T, round t has (1 + cos(pi (t - 1) / T)) / 2 of them."""
    share: Shared = "pq+class"
    """What leaves a device: P and Q alone, or plain LoRA for devices of its class too."""
    signature: SignatureSettings = SignatureSettings()
    alignment: AlignmentSettings = AlignmentSettings()

    def rates(self, round: int, rounds: int) -> float:
        """Which share of its rates a round of `rounds`, counted from 1, has."""
        return (1 + math.cos(math.pi * (round - 1) / rounds)) / 2 if self.schedule == "cosine" else 1.0

    @property
    def method_spec(self) -> MethodSpec:
        """What both sides know of the method."""
        return METHODS[self.method.name]

    @property
    def pq(self) -> PQSettings | None:
        """Settings of PQ-LoRA; None where all adapters are plain LoRA."""
        return self.method if isinstance(self.method, PQSettings) else None
