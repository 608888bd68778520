"""Shows items as another run learnt to show contents: a model that knows no item by itself serves any catalogue."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.errors import ConfigError, DataError
from tessera.common.protocol.messages import VIEWS
from tessera.server.strategies.fedvlr import FedVLR


def content_views(
    settings: Settings, tensors: Mapping[str, Tensor], own: Catalogue, other: Catalogue, folder: Path | None = None
) -> Tensor:
    """The views [n_views, n_items, dim] of `other` items by what a run with `settings` learnt of its `own`, its `tensors`.

    Features are standardised as those of its own items were. `folder` is where the other dataset lies, for encoders that read
    more than features. Raises `ConfigError` for a run that knows items by numbers of their own, `DataError` for features that
    another encoder made.
    """
    if settings.views.item_ids:
        raise ConfigError("views.item_ids: what a run learnt of single items says nothing of others; set it to false")
    features = {name: _as_standardised(name, own.features[name], other) for name in own.features}
    there = replace(other, features=features)
    strategy = FedVLR(settings, there, torch.device("cpu"), folder)
    fresh, rows = strategy.state(), {f"model/{name}" for name in strategy.generator.by_item}
    learnt = {name: value for name, value in tensors.items() if name.startswith("model/") and name not in rows}
    strategy.restore({name: value for name, value in fresh.items() if name in rows} | learnt)
    return strategy.build_views()[VIEWS]


def _as_standardised(name: str, own: Features, other: Catalogue) -> Features:
    """The same modality of other items, to be standardised as a run's own items were."""
    if name not in other.features:
        raise DataError(f"the other catalogue has no modality {name!r}, which the run reads")
    found = other.features[name]
    if found.encoder != own.encoder or found.values.shape[1] != own.values.shape[1]:
        raise DataError(
            f"modality {name!r} is by {found.encoder}, and the run learnt of {own.encoder}: encode it alike"
        )
    return replace(found, standard=own.standard or own.own_standard())
