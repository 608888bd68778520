"""The base of all settings: frozen, typed, and strict about names; the numbers in them; and shared tensors as specs name them.

A component's own settings extend `ComponentSettings`; a component that has none of its own needs no class.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Step = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
"""Rates, sizes and times. All of these fit into the 32 or 64 bits that they are computed in."""


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value!r} is given twice: leave one")
    return values


OnceEach = AfterValidator(_each_once)
"""Of a tuple whose values differ."""


class FrozenSettings(BaseModel):
    """Settings that refuse keys they do not have, and never change. Attribute docstrings describe them to editors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class ComponentSettings(FrozenSettings):
    """What all components have: a name. Those with settings of their own extend it."""

    name: str
    """Which component it is."""


class QuerySettings(ComponentSettings):
    """Settings of models whose query is what a history says, and a vector of the person's own."""

    private_vector: bool = True
    """Whether there is such a vector, learnt on the device and kept there; without, the history says all (an ablation)."""


@dataclass(frozen=True)
class Shared:
    """A shared tensor: its shape, and how it starts: uniform within 1 / sqrt(its inputs), all one, or all zero."""

    shape: tuple[int, ...]
    start: Literal["uniform", "ones", "zeros"] = "uniform"


SharedTensors = dict[str, Shared]
