"""Lists the encoders behind the views: what the server makes of a modality's features before it projects them.

Devices return gradients of views, and one vector-Jacobian product takes their sum into whatever computed these: an encoder
learns although no device ever runs it. A new one is one file in `server/encoders/` and one entry below. Another package offers
one as a `ContentEncoderSpec` in the entry-point group `tessera.content_encoders`.
"""

from dataclasses import dataclass

from tessera.common.registry.component import ComponentSettings, Fraction, Natural, Positive
from tessera.common.registry.registry import Registry


class BottleneckSettings(ComponentSettings):
    """Settings of a bottleneck adapter."""

    hidden: Positive = 64
    """Width of the layer between."""


class IISANSettings(ComponentSettings):
    """Settings of a network beside an encoder, over the states of its layers."""

    hidden: Positive = 32
    """Width of the bottleneck at each layer."""


class PretrainedSettings(ComponentSettings):
    """Settings of pretrained encoders of texts, pictures or both, which are adapted themselves."""

    tower: str
    """The encoder: a folder that transformers can load, a name on the hub, or open_clip:MODEL:CHECKPOINT, which reads texts and
    pictures."""
    image_tower: str = ""
    """The encoder of pictures, where `tower` reads texts alone; without one pictures get what stands `beside`."""
    tokens: Positive = 64
    """Tokens of a text that are read."""
    share: Fraction = 1.0
    """Share of the items that a step's gradient goes through, drawn anew for each and weighed up: in expectation it is the step
    of all items, at a cost that falls from four forward passes over all items towards one."""
    targets: tuple[str, ...] = ()
    """Names of the layers that are adapted; those that PEFT adapts in models of this kind, where there are none."""
    layers: tuple[Natural, ...] = ()
    """Numbers of the blocks that are adapted, from 0; all, where there are none. Blocks below the first one run once for a run
    and not once a round, so the last few are cheap."""
    beside: BottleneckSettings = BottleneckSettings(name="bottleneck")
    """The adapter of modalities that no encoder here reads."""


class LoRASettings(PretrainedSettings):
    """Settings of LoRA."""

    rank: Positive = 4
    """Rank of a layer's change."""


class IA3Settings(PretrainedSettings):
    """Settings of IA3."""

    feedforward: tuple[str, ...] = ()
    """Names of targets of which the input is scaled, and not the output; those that PEFT names, where there are none."""


@dataclass(frozen=True)
class ContentEncoderSpec:
    """An encoder: a `tessera.server.encoders.ContentEncoder`, or a function that makes one, named by `implementation`."""

    implementation: str
    settings: type[ComponentSettings] = ComponentSettings


CONTENT_ENCODERS = Registry(
    "encoder of contents",
    "tessera.content_encoders",
    ContentEncoderSpec,
    {
        "frozen": ContentEncoderSpec("tessera.server.encoders.frozen:Frozen"),
        "bottleneck": ContentEncoderSpec("tessera.server.encoders.bottleneck:Bottleneck", BottleneckSettings),
        "iisan": ContentEncoderSpec("tessera.server.encoders.iisan:IISAN", IISANSettings),
        "lora": ContentEncoderSpec("tessera.server.encoders.pretrained:lora", LoRASettings),
        "ia3": ContentEncoderSpec("tessera.server.encoders.pretrained:ia3", IA3Settings),
    },
)
