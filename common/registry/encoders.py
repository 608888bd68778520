"""Lists the encoders of pictures and texts, and which options each of them takes.

A new encoder is one file in `common/encoders/` and one line below. Another package offers one as an `EncoderSpec` in the
entry-point group `tessera.encoders`.
"""

from dataclasses import dataclass

from tessera.common.registry.registry import Registry

OPEN_CLIP = "open_clip"
"""What encodes for a model that is not itself in the registry, such as ViT-B-32."""
HUGGING_FACE = "huggingface"
"""What encodes for a model's folder, or for a name behind the prefix."""
HUGGING_FACE_PREFIX = "hf:"
"""What stands before a model's name on the hub: hf:sentence-transformers/all-MiniLM-L6-v2."""


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder.

    Args:
        help: What it is, in one line.
        implementation: A class or function, "package.module:name", that returns a `tessera.common.encoders.base.Encoder`.
            It is called with its `options` by name.
        options: Of "model" (the name that was asked for), "pretrained" (a checkpoint or the name of one, or None), "towers"
            (the folder of a dataset's towers) and "device" ("auto", "cpu" or "cuda"). Others are refused where they are given.
    """

    help: str
    implementation: str
    options: tuple[str, ...] = ()


_HERE = "tessera.common.encoders"
_TOWER = "a {} tower of Tessera's own, fitted to a dataset by `tessera towers fit`"
ENCODERS: Registry[EncoderSpec] = Registry(
    "encoder",
    "tessera.encoders",
    EncoderSpec,
    {
        "builtin": EncoderSpec(
            "histograms of colours and edges, hashed words: no download", f"{_HERE}.builtin:BuiltinEncoder"
        ),
        OPEN_CLIP: EncoderSpec(
            "any model of open_clip by its name, such as ViT-B-32",
            f"{_HERE}.clip:ClipEncoder",
            ("model", "pretrained", "device"),
        ),
        HUGGING_FACE: EncoderSpec(
            "texts or pictures by an encoder of transformers: a local folder, or hf:NAME on the hub",
            f"{_HERE}.huggingface:HuggingFaceEncoder",
            ("model", "device"),
        ),
        **{
            size: EncoderSpec(_TOWER.format(size), f"{_HERE}.towers:TowerEncoder", ("model", "towers", "device"))
            for size in ("tiny", "small", "base")
        },
    },
)
