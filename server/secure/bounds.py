"""Says how large the gradients of a device may be in a round: public numbers, taken from the sums of the rounds before."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tessera.common.protocol import linear
from tessera.common.protocol.codecs import TABLES
from tessera.common.protocol.masked.masking import GRADIENTS
from tessera.common.protocol.updates import Update
from tessera.common.secure.fixed_point import Spec

FIRST = 16.0
"""The largest entry of a person's gradient that is looked for before there was any round."""
ROOM = 4.0
"""How much larger than the last round's sums a device's entries may be."""


@dataclass
class Bounds:
    """By name the largest entry of the sums seen, with room, and the Euclidean length of the longest: either falls by half a
    round at most."""

    largest: dict[str, float] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=dict)

    def tables(self, shapes: Mapping[str, Sequence[int]], people: float, short: bool) -> tuple[Spec, ...]:
        """What devices of so many people at most send of gradients with these shapes, in words of 32 bits.

        Where `short` words are wanted tables of items have 16, once there was a sum to take their bound from.
        """
        return tuple(
            self._table(name, tuple(shape), people, short and name in TABLES) for name, shape in shapes.items()
        )

    def _table(self, name: str, shape: tuple[int, ...], people: float, short: bool) -> Spec:
        spec = Spec(f"{GRADIENTS}{name}", shape, "table", self.largest.get(name, FIRST * people))
        if not short or name not in self.longest:
            return spec
        return Spec(spec.name, shape, "short", linear.bound(self.longest[name], spec.size))

    def learn(self, sums: Iterable[Update]) -> None:
        """Take the size of what the next round's gradients may be from this round's sums."""
        for update in sums:
            for name, gradient in update.gradients.items():
                if largest := float(gradient.abs().max()) if gradient.numel() else 0.0:
                    self.largest[name] = max(ROOM * largest, self.largest.get(name, 0.0) / 2)
                    self.longest[name] = max(float(gradient.double().norm()), self.longest.get(name, 0.0) / 2)
