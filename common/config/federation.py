"""The settings of how the server steps, how work is spread and what travels: see `tessera.common.config.settings`."""

import math
import os
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema, model_validator

from tessera.common.config.components import Defence
from tessera.common.registry.component import (
    Amount,
    ComponentSettings,
    Fraction,
    FrozenSettings,
    Natural,
    Positive,
    Share,
    Step,
)
from tessera.common.registry.defences import AttackersSettings


def _counted(nodes: Any) -> Any:
    """`nodes`, where "auto" is the number of this machine's processors."""
    return os.cpu_count() or 1 if nodes == "auto" else nodes


Nodes = Annotated[
    Positive,
    BeforeValidator(_counted),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "exclusiveMaximum": 2**31}]}),
]

Codec = Literal["float32", "float16", "bfloat16", "int16", "int8", "1%", "4%", "15%"]


class ServerSettings(FrozenSettings):
    """How the server steps on the aggregated gradient."""

    optimizer: Literal["sgd", "adam"] = "adam"
    """What steps all that the server learns."""
    learning_rate: Step = 0.003
    """Its rate."""
    schedule: Literal["constant", "linear"] = "constant"
    """linear: all rates fall evenly with the steps, to 0 after `rounds` of them, so that the last ones average noise out."""
    head_learning_rate: Step | None = None
    """The rate of the head that a backbone shares; empty: the same."""
    weight_decay: Amount = 0.0
    """How fast what is learnt shrinks, in units of the rate; a shared head does not."""
    by_fan_in: bool = False
    """Divide the rate of a linear map's weights by its number of inputs (Yang et al. 2021, Tensor Programs V): under Adam
    the contents' maps, a thousand inputs wide, otherwise outrun the embeddings."""


class GroupSettings(FrozenSettings):
    """How people are divided into groups that each have a map of the items of their own (PerPEFT): see docs/cohesion.md."""

    count: Natural = 0
    """Groups; 0: none."""
    by: Literal["states", "mixture", "cohesion", "random", "given"] = "states"
    """states: by what people like, k-means from sums. mixture: the same by a mixture of densities, in whose sums people count
    for several groups by shares until they are divided. cohesion: by the block of `views.facets` in which their items are most
    alike. random: drawn by user. given: as groups.csv in the device's folder says (user, group), which its owner put there."""
    after: Natural = 0
    """Rounds in which all train alike, before people are divided."""
    lloyd_rounds: Positive = 10
    """Sums, at most, that find the centres of `states` or of a `mixture`."""
    rank: Natural = 0
    """Numbers of a query, the first ones, that a group's map reads; 0: all of `views.dim`. What groups cost in a message falls
    with it: a spectral start has in the first ones what tells most."""
    smallest: Positive = 10
    """People who must be in a group's part of a round's sum; with fewer the group's map is not stepped."""

    @property
    def by_sums(self) -> bool:
        """Whether centres are found by sums of people's states."""
        return self.count > 0 and self.by in ("states", "mixture")


class FederationSettings(FrozenSettings):
    """How the work is spread over nodes, and how long the server waits for them."""

    nodes: Nodes = 1
    """Nodes the people are spread over, or that must have joined before a run begins. auto: one for each of this machine's
    processors, which is the least that a simulation on Ray can be worked off with."""
    timeout: Step = 600.0
    """Seconds a round may take; whoever has not answered by then is left out."""
    clients_per_round: Natural = 0
    """Nodes whose training a round needs, drawn anew each round; 0 asks all."""
    over_selection: Amount = 0.0
    """How many more are asked, as a share of `clients_per_round`; the round closes with the first to answer."""
    min_nodes: Positive = 1
    """A round that fewer nodes answered is abandoned; the run fails after three such rounds in a row."""
    min_fraction: Share = 0.0
    """The same as a share of `clients_per_round`, or of `nodes` where all are asked."""
    largest_gradient: Amount = 0.0
    """A node's update is dropped whose gradients, divided by its weight, have a larger Euclidean norm; 0 takes any. It is
    for accidents: a node that lies may also lie about its weight."""
    defence: Defence = ComponentSettings(name="none")
    """How nodes' gradients are combined: added up, or so that a few hostile nodes have little say."""
    pictures: bool = False
    """Whether a run that publishes its best model publishes small pictures of the items with it, where the dataset has any."""
    checkpoint_every: Positive = 1
    """Rounds from one checkpoint to the next; the last round always has one."""

    @model_validator(mode="after")
    def _of_those_drawn(self) -> "FederationSettings":
        if self.over_selection and not self.clients_per_round:
            raise ValueError("over_selection is a share of clients_per_round: set it too")
        if self.clients_per_round > self.nodes:
            raise ValueError(
                f"clients_per_round asks {self.clients_per_round} nodes, and there are {self.nodes}: set as many"
            )
        if isinstance(self.defence, AttackersSettings):
            needed, there = 2 * self.defence.attackers + 1, self.clients_per_round or self.nodes
            if there < needed:
                raise ValueError(
                    f"a defence against {self.defence.attackers} takes {needed} nodes in a round, most of them honest: "
                    f"there are {there}"
                )
        if self.least > self.nodes:
            raise ValueError(
                f"min_nodes or min_fraction asks for {self.least} answers: the run begins with {self.nodes} nodes, set as many"
            )
        return self

    @property
    def asked(self) -> int:
        """Nodes that are asked to train in a round."""
        return math.ceil(self.clients_per_round * (1 + self.over_selection)) if self.clients_per_round else self.nodes

    @property
    def least(self) -> int:
        """Nodes that must answer a round."""
        return max(self.min_nodes, math.ceil(self.min_fraction * (self.clients_per_round or self.nodes)))


class SimulationSettings(FrozenSettings):
    """Where simulated nodes run: with the Ray executor, workers of one CPU each."""

    address: str = ""
    """Address of a Ray cluster that is there; without it RAY_ADDRESS, and without that a Ray of the run's own on loopback."""
    gpus: Fraction | None = None
    """Share of a GPU that a worker takes; by default the one of this machine is shared by as many as it has CPUs."""


class WireSettings(FrozenSettings):
    """Number formats on the wire: see `tessera.common.protocol.codecs`."""

    views: Codec = "float16"
    """Format of what goes down to devices."""
    gradients: Codec = "float32"
    """Format of what comes up from them; under masks float32, as words of 32 bits, or int16."""
    explained: Fraction = 1.0
    """Share of the squares of the views' gradients that comes up: along as few public directions of the views as held it in
    the round before, see `tessera.common.protocol.projection`; 1: the gradient of each view."""
