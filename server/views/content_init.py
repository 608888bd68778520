"""Finds a start for the item embeddings in contents alone: the leading directions of what encoders made of the items."""

import torch
from torch import Tensor

from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import DataError

NOTHING = 1e-5
"""Singular values below this share of the largest are noise."""


def content_vectors(catalogue: Catalogue, modalities: tuple[str, ...], rank: int) -> tuple[Tensor, Tensor]:
    """Left singular vectors U [n_items, rank] of the modalities side by side, each standardised and of the same weight, and the
    fourth powers of their singular values s [rank]: `ViewGenerator.initialise` then shows U s, so that the embeddings start
    with the contents' own inner products, as far as `rank` dimensions can hold them.

    Items without any of the contents get zeros. Raises `DataError` for a modality that is not there.
    """
    if missing := [name for name in modalities if name not in catalogue.features]:
        there = ", ".join(catalogue.features) or "none"
        raise DataError(f"views.start_from: the catalogue has no modality {missing[0]!r}; it has {there}")
    tables = [torch.from_numpy(catalogue.features[name].standardised()) for name in modalities]
    features = torch.cat([table / table.shape[1] ** 0.5 for table in tables], dim=1)
    vectors, values, _ = torch.linalg.svd(features, full_matrices=False)
    vectors, values = vectors[:, :rank], values[:rank]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    kept = (values > NOTHING * values[0]) & features.any(1, keepdim=True)
    return vectors * kept, values**4
