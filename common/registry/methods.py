"""What both sides must know of each way to train adapters together: which adapters, and with whom they are merged.

A new method is one file in `client/methods/`, its line there, and its line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Sharing = Literal["nothing", "tower", "all", "relevant"]


@dataclass(frozen=True)
class MethodSpec:
    """Adapters are PQ-LoRA in the places of Eq. 6 and plain LoRA elsewhere, or, without `pq`, plain LoRA everywhere.

    `shares` says what the server averages: nothing; everything evenly within a device class ("tower"); P and Q evenly over
    all devices and plain LoRA evenly within a class ("all"); the same weighted by relevance (RELA, "relevant").
    """

    pq: bool
    shares: Sharing


METHOD_SPECS: Mapping[str, MethodSpec] = {
    "sft": MethodSpec(pq=False, shares="nothing"),
    "fedit": MethodSpec(pq=False, shares="tower"),
    "ditto": MethodSpec(pq=False, shares="tower"),
    "fedsim": MethodSpec(pq=False, shares="tower"),
    "feddpa": MethodSpec(pq=False, shares="tower"),
    "feddat": MethodSpec(pq=False, shares="tower"),
    "pq": MethodSpec(pq=True, shares="all"),
    "fedmosaic": MethodSpec(pq=True, shares="relevant"),
}
