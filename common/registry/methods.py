"""What both sides must know of each way to train adapters together: which adapters, and with whom they are merged.

A new regime is one file in `client/regimes/`, its line there, and its line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Sharing = Literal["nothing", "tower", "all", "relevant"]


@dataclass(frozen=True)
class Regime:
    """Adapters are PQ-LoRA in the places of Eq. 6 and plain LoRA elsewhere, or, without `pq`, plain LoRA everywhere.

    `shares` says what the server averages: nothing; everything evenly within a device class ("tower"); P and Q evenly over
    all devices and plain LoRA evenly within a class ("all"); the same weighted by relevance (RELA, "relevant").
    """

    pq: bool
    shares: Sharing


REGIMES: Mapping[str, Regime] = {
    "sft": Regime(pq=False, shares="nothing"),
    "fedit": Regime(pq=False, shares="tower"),
    "ditto": Regime(pq=False, shares="tower"),
    "fedsim": Regime(pq=False, shares="tower"),
    "feddpa": Regime(pq=False, shares="tower"),
    "feddat": Regime(pq=False, shares="tower"),
    "pq": Regime(pq=True, shares="all"),
    "fedmosaic": Regime(pq=True, shares="relevant"),
}
