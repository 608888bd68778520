"""The settings that travel to devices: those that they need for their work, and no others.

A device reads them leniently: what a newer server of the same protocol version says beside them is left out.
"""

from typing import Annotated, Literal

from pydantic import Field

from tessera.common.config.components import Strategy
from tessera.common.config.moments import Moment
from tessera.common.config.privacy import PrivacySettings
from tessera.common.config.settings import (
    EvaluationSettings,
    LocalSettings,
    MosaicSettings,
    Operator,
    Settings,
    SplitName,
    WireSettings,
)
from tessera.common.registry.component import ComponentSettings, Fraction, FrozenSettings, Positive, Rate, Seed, Share
from tessera.common.registry.converters import QUESTIONS, TEXT_QUESTIONS
from tessera.common.registry.strategies import STRATEGIES, StrategySpec

LENIENT = {"lenient": True}
"""Context of a validation that leaves unknown settings of components out."""


class SplitSettings(FrozenSettings):
    """What the data are, and how people's events are split: see `tessera.common.config.settings.DataSettings`."""

    kind: str
    split: SplitName = "leave-one-out"
    validation_from: Moment | None = None
    test_from: Moment | None = None
    validation_share: Share | None = None
    test_share: Share | None = None
    split_seed: Seed = 0
    cold_items: Annotated[float, Field(ge=0, le=0.25)] = 0.0
    cold_users: Rate = 0.0


class SentViewSettings(FrozenSettings):
    """What the views are that are sent: see `tessera.common.config.settings.ViewSettings`."""

    dim: Positive = 64
    operators: tuple[Operator, ...] = ()
    single: bool = True


class DeviceSettings(FrozenSettings):
    """What a device must know of a run: nothing of its name, the server's optimiser, the federation or its data's folder.

    Groups of settings that a run's strategy does not read do not travel.
    """

    data: SplitSettings
    seed: Seed = 0
    rounds: Positive
    strategy: Strategy = ComponentSettings(name="fedvlr")
    fraction: Fraction = 1.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    views: SentViewSettings = SentViewSettings()
    local: LocalSettings = LocalSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    wire: WireSettings = WireSettings()
    privacy: PrivacySettings = PrivacySettings()
    mosaic: MosaicSettings = MosaicSettings()

    @classmethod
    def of(cls, settings: Settings) -> "DeviceSettings":
        """Those of a run's settings that devices need."""
        return cls.read(settings.model_dump_json())

    @classmethod
    def read(cls, text: str) -> "DeviceSettings":
        """Read JSON; what is unknown in it is left out. Raises pydantic's `ValidationError` for what is missing or unfit."""
        return cls.model_validate_json(text, extra="ignore", context=LENIENT)

    @property
    def asks_questions(self) -> bool:
        """Whether devices answer questions about items; otherwise they recommend items to people."""
        return self.data.kind in (QUESTIONS, TEXT_QUESTIONS)

    @property
    def in_words(self) -> bool:
        """Whether the questions are in words."""
        return self.data.kind == TEXT_QUESTIONS

    @property
    def strategy_spec(self) -> StrategySpec:
        """What both sides know of the strategy."""
        return STRATEGIES[self.strategy.name]
