"""Converts raw data into datasets."""

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.common.errors import ConfigError, DataError
from tessera.common.registry.converters import CONVERTERS, unused_option
from tessera.common.registry.registry import nearest

if TYPE_CHECKING:
    from tessera.common.encoders.base import Encoder

SHOP = "shop"
SIZES = {"items": "n_items", "users": "n_users", "seed": "seed"}
"""Options of the generated shop, as they are called here and there."""


def convert(
    kind: str,
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    encode: str | None = None,
    pretrained: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Convert the raw data of `kind` at `source` into a dataset in the folder `out`; return its description, dataset.json.

    `tessera data kinds` lists the kinds and the options of each, such as `min_rating` or `user_column`. `encode` makes features
    of texts and pictures: "builtin", or an open_clip model with weights `pretrained`. The kind "shop" is generated, from no
    source: `items` and `users` say how many, `seed` which. All is converted or, where something is malformed, nothing.

    Raises `ConfigError` for an unknown kind or option, `DataError` that names file, row and item.
    """
    return convert_as(str, kind, source, out, overwrite, encode, pretrained, options)


def convert_as(
    called: Callable[[str], str],
    kind: str,
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    overwrite: bool,
    encode: str | None,
    pretrained: str | None,
    options: Mapping[str, Any],
    watched: Callable[["Encoder"], "Encoder"] = lambda encoder: encoder,
) -> dict[str, Any]:
    """The same for who calls options otherwise: `called` says how, for errors. Through `watched` goes the encoder, if any."""
    from tessera.common.datasets import Options, convert, convert_shop
    from tessera.common.encoders import make_encoder

    if pretrained is not None and encode is None:
        raise DataError(f"{called('pretrained')} needs a model: {called('encode')}, such as ViT-B-32")
    chosen = {name: value for name, value in options.items() if value is not None}
    _require_known(kind, [*chosen, *(["encode"] if encode else [])], called)
    if chosen.get("skip_unreadable") and not chosen.get("images") and encode is None:
        remedy = f"{called('encode')} or {called('images')}"
        raise DataError(f"{called('skip_unreadable')} has no effect without {remedy}: no picture is opened")
    encoder = watched(make_encoder(encode, pretrained=pretrained)) if encode else None
    if kind == SHOP:
        sizes = {SIZES[name]: value for name, value in chosen.items()}
        return convert_shop(Path(out), overwrite=overwrite, encoder=encoder, **sizes)
    given = Options(**chosen | ({"encode": encoder} if encoder else {}))
    return convert(kind, Path(source or "-"), Path(out), given, overwrite)


def _require_known(kind: str, given: list[str], called: Callable[[str], str]) -> None:
    """Raise `ConfigError` for a kind or an option that there is not, `DataError` for one without effect."""
    from tessera.common.datasets import Options

    CONVERTERS[kind]
    own = [*SIZES, "encode"] if kind == SHOP else []
    known = [*own, *(field.name for field in fields(Options))]
    if strange := next((name for name in given if name not in known), None):
        raise ConfigError(f"unknown option {strange!r}; the nearest known one is {nearest(strange, known)!r}")
    if problem := unused_option(kind, [name for name in given if name not in own], called):
        raise DataError(problem)
