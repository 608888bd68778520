"""Settings of the models that read a history event by event, and what they share: a network that all devices train."""

from typing import Annotated

from pydantic import Field

from tessera.common.errors import ConfigError
from tessera.common.registry.component import Positive, QuerySettings, Rate, Shared, SharedTensors


class GRU4RecSettings(QuerySettings):
    """Settings of GRU4Rec."""

    length: Positive = 50
    """How many of the last events are read."""
    dropout: Rate = 0.0
    """Share of the network's numbers that are set to zero in each local step, drawn by user and number."""


class SASRecSettings(GRU4RecSettings):
    """Settings of SASRec."""

    blocks: Annotated[int, Field(ge=1, le=8)] = 2
    """Blocks of attention and feed-forward layers."""
    heads: Positive = 2
    """Heads of attention; they divide `views.dim`."""


def sasrec_tensors(dim: int, settings: SASRecSettings) -> SharedTensors:
    """Attention, feed-forward layers as wide as `dim`, norms, a vector for each place, and the read-out. Raises `ConfigError`
    for heads that do not divide `dim`."""
    if dim % settings.heads:
        raise ConfigError(f"local.backbone.heads: {settings.heads} heads do not divide views.dim {dim}")
    found = {"sasrec_places": Shared((settings.length, dim), "zeros"), **_norm("sasrec_norm", dim)}
    for block in range(settings.blocks):
        at = f"sasrec_{block}"
        found |= _norm(f"{at}_norm", dim) | _norm(f"{at}_norm2", dim)
        for name in ("query", "key", "value", "out", "first", "second"):
            found |= _linear(f"{at}_{name}", dim)
    return found | _read_out("sasrec", dim)


def gru4rec_tensors(dim: int, settings: GRU4RecSettings) -> SharedTensors:
    """A gated recurrent unit as wide as `dim`, as torch holds it, and the read-out."""
    wide = {f"gru4rec_{name}": Shared((3 * dim, dim)) for name in ("input", "state")}
    biases = {f"gru4rec_{name}_bias": Shared((3 * dim,), "zeros") for name in ("input", "state")}
    return wide | biases | _read_out("gru4rec", dim)


def _linear(name: str, dim: int) -> SharedTensors:
    return {name: Shared((dim, dim)), f"{name}_bias": Shared((dim,), "zeros")}


def _norm(name: str, dim: int) -> SharedTensors:
    return {f"{name}_gain": Shared((dim,), "ones"), f"{name}_bias": Shared((dim,), "zeros")}


def _read_out(prefix: str, dim: int) -> SharedTensors:
    """Zero, so that a run starts without what the network says."""
    return {f"{prefix}_read": Shared((dim, dim), "zeros"), f"{prefix}_read_bias": Shared((dim,), "zeros")}
