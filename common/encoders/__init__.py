"""Encodes pictures and texts into features. An offline tool: neither app imports it.

`make_encoder` builds one by its name; `tessera.common.encoders.base` says what an encoder is.
"""

from pathlib import Path
from typing import Any

from tessera.common.encoders.base import Encoder
from tessera.common.errors import DataError
from tessera.common.registry.encoders import ENCODERS, HUGGING_FACE, HUGGING_FACE_PREFIX, OPEN_CLIP
from tessera.common.registry.registry import resolve

__all__ = ["Encoder", "encoder_of", "make_encoder"]


def make_encoder(
    model: str, *, pretrained: str | None = None, towers: Path | None = None, device: str = "auto"
) -> Encoder:
    """The encoder of a name in the registry, of a model's folder or hf:NAME, or else the open_clip model of that name with
    `pretrained` weights.

    Raises `DataError` for a name that means nothing, and for weights or towers that the encoder does not use.
    """
    transformers = model.startswith(HUGGING_FACE_PREFIX) or (Path(model) / "config.json").is_file()
    if model not in ENCODERS and pretrained is None and not transformers:
        known = ", ".join(ENCODERS)
        raise DataError(
            f"there is no encoder {model!r} (known are {known}), nor a folder of a transformers model; an open_clip model "
            "also needs --pretrained"
        )
    name = model if model in ENCODERS else HUGGING_FACE if transformers else OPEN_CLIP
    options = ENCODERS[name].options
    for option, value in (("pretrained", pretrained), ("towers", towers)):
        if value is not None and option not in options:
            users = ", ".join(other for other, spec in ENCODERS.items() if option in spec.options)
            raise DataError(f"--{option} has no effect on the encoder {model}: leave it out; it is for {users}")
    given: dict[str, Any] = {"model": model, "pretrained": pretrained, "towers": towers, "device": device}
    encoder: Encoder = resolve(ENCODERS[name].implementation)(**{option: given[option] for option in options})
    return encoder


def encoder_of(recorded: str, towers: Path, pretrained: str | None = None) -> Encoder | None:
    """The encoder that computed features, by the name that is recorded beside them; None for one that nobody here knows.

    Raises `DataError` where it needs weights, or towers, that are not there.
    """
    kind, _, rest = recorded.partition(":")
    model = rest.partition(":")[0]
    if kind == "tower" and model in ENCODERS:
        return make_encoder(model, towers=towers)
    if kind == OPEN_CLIP:
        if pretrained is None:
            raise DataError(f"features are by {recorded}: pass its weights by --pretrained, or features by --features")
        return make_encoder(model, pretrained=pretrained)
    builtin = make_encoder("builtin")
    return builtin if recorded in (builtin.image_name, builtin.text_name) else None
