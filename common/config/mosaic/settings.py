"""The settings of adapted towers: who has which, what adapters are made of, and how devices learn from one another."""

import math
from typing import Annotated, Literal

from pydantic import Field

from tessera.common.config.components import Method
from tessera.common.registry.component import FrozenSettings, Natural, Positive, Step
from tessera.common.registry.methods import (
    METHODS,
    AlignmentSettings,
    DistillationSettings,
    FedMosaicSettings,
    MethodSpec,
    PQSettings,
    Shared,
    SignatureSettings,
)

SIZES = ("tiny", "small", "base")
"""Device classes whose towers are ours, fitted on a catalogue."""
CLASS = "^[a-z][a-z0-9_]{0,23}$"
"""Names of device classes."""


class MosaicSettings(FrozenSettings):
    """How devices of different classes adapt their towers and learn from one another (FedMosaic)."""

    classes: Annotated[tuple[Annotated[str, Field(pattern=CLASS)], ...], Field(min_length=1)] = SIZES
    """The nodes' device classes, given out in turn: sizes of our towers (tiny, small, base), or names among `models`."""
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

    @property
    def distillation(self) -> DistillationSettings | None:
        """Settings of learning from others' answers to public questions; None where there are no such questions."""
        return self.method if isinstance(self.method, DistillationSettings) else None


class ModelledMosaicSettings(MosaicSettings):
    """The same with where the server has models of other people: devices are not told, they have their own."""

    models: dict[Annotated[str, Field(pattern=CLASS)], str] = Field(default_factory=dict)
    """Device classes that are other people's models, by name: a local folder that transformers or open_clip wrote, a GGUF file,
    package:NAME, hf:NAME or open_clip:MODEL:CHECKPOINT. They are for questions in words (data.kind text-questions)."""

    def require_classes(self, words: bool) -> None:
        """Raise `ValueError` unless there are all classes, and questions in `words`, or others, are for them."""
        if words and self.signature.of == "own":
            raise ValueError("mosaic.signature.of own is for towers of ours: leave it out")
        if words and self.distillation:
            raise ValueError(
                f"mosaic.method {self.method.name} needs public questions, which there are none of in words"
            )
        if taken := sorted(self.models.keys() & set(SIZES)):
            raise ValueError(f"mosaic.models: {taken[0]!r} is a size of our own towers, call the model otherwise")
        known = tuple(self.models) if words else SIZES
        for name in self.classes:
            if name in known:
                continue
            if name in SIZES:
                why = f"a tower of size {name} reads features, no words: name a model of mosaic.models"
            elif name in self.models:
                why = f"the model {name!r} reads words: set data.kind to text-questions"
            else:
                why = f"there is no device class {name!r}; known are {', '.join((*SIZES, *self.models))}"
            raise ValueError(f"mosaic.classes: {why}")
