"""What each backbone asks of the server: the one thing both sides must know about a prediction model.

A new backbone is one file in `client/backbones/`, its line there, and its line here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]


def _none(dim: int) -> Shapes:
    return {}


def ncf_shapes(dim: int) -> Shapes:
    """Shapes of the shared MLP of FedNCF over [user, item]: 2 dim -> dim -> dim / 2 -> 1."""
    half = max(1, dim // 2)
    return {
        "ncf_user": (dim, dim), "ncf_item": (dim, dim), "ncf_bias": (dim,),
        "ncf_hidden": (half, dim), "ncf_hidden_bias": (half,), "ncf_out": (half,),
    }  # fmt: skip


@dataclass(frozen=True)
class BackboneSpec:
    """What is broadcast beside the views: the history view, and a head that is shared, learnt and aggregated like them."""

    history: bool = False
    shared: Callable[[int], Shapes] = _none


BACKBONES: Mapping[str, BackboneSpec] = {
    "fedavg": BackboneSpec(),
    "fcf": BackboneSpec(),
    "fedncf": BackboneSpec(shared=ncf_shapes),
    "pfedrec": BackboneSpec(),
    "fedrap": BackboneSpec(),
    "history": BackboneSpec(history=True),
}
