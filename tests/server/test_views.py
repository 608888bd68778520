"""What an ablation takes away is really away: nothing of it is in the views, whatever it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tessera.common.config.settings import ViewSettings
from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import DataError
from tessera.common.registry.component import ComponentSettings
from tessera.server.views.generator import ViewGenerator
from tests.support.catalogues import small_catalogue


def views(catalogue: Catalogue, **changes: object) -> tuple[ViewGenerator, torch.Tensor]:
    torch.manual_seed(3)
    generator = ViewGenerator(catalogue, ViewSettings(dim=8, id_dim=8, **changes), ComponentSettings(name="fedavg"))
    return generator, generator()["views"]


def other_pictures(catalogue: Catalogue) -> Catalogue:
    image = catalogue.features["image"]
    values = np.random.default_rng(9).normal(size=image.values.shape).astype(np.float32)
    return replace(catalogue, features=dict(catalogue.features) | {"image": replace(image, values=values)})


def test_noise_hides_what_the_pictures_were() -> None:
    catalogue = small_catalogue(20)
    other = other_pictures(catalogue)
    assert not torch.equal(views(catalogue)[1], views(other)[1])
    generator, hidden = views(catalogue, noise=("image",))
    torch.testing.assert_close(hidden, views(other, noise=("image",))[1])
    table = generator.get_buffer("features_image")
    assert table.shape == (20, 12)
    assert float(table.std()) == pytest.approx(1, abs=0.15)
    assert not torch.equal(hidden, views(catalogue)[1])


def test_noise_for_ids_is_an_embedding_that_never_learns() -> None:
    generator, _ = views(small_catalogue(20), noise=("id",))
    noise = generator.embedding.clone()
    generator.initialise(
        torch.randn(20, 8), torch.ones(8), ViewSettings(dim=8, id_dim=8)
    )  # what is known does not replace it
    torch.testing.assert_close(generator.embedding, noise)
    generator()["views"].sum().backward()
    assert generator.embedding.grad is None
    assert generator.projections[-1].weight.grad is not None


@pytest.mark.parametrize("single", [True, False])
def test_without_item_ids_no_item_has_anything_of_its_own(single: bool) -> None:
    """Two items of equal content are the same item, and there is one view fewer."""
    catalogue = small_catalogue(20)
    twins = {name: replace(one, values=one.values[[0, 0, *range(2, 20)]], present=one.present[[0, 0, *range(2, 20)]])
             for name, one in catalogue.features.items()}  # fmt: skip
    generator, built = views(replace(catalogue, features=twins), item_ids=False, single=single)
    assert "id" not in generator.names
    assert len(built) == len(generator.names)
    torch.testing.assert_close(built[:, 0], built[:, 1])
    built.sum().backward()
    assert generator.embedding.grad is None


def test_mistakes_are_named() -> None:
    for changes, message in (
        ({"noise": ("sound",)}, "no modality 'sound'"),
        ({"noise": ("text",), "modalities": ("image",)}, "'text', which these views do not show"),
        ({"noise": ("id",), "item_ids": False}, "'id', which these views do not show"),
        ({"modalities": ("id",)}, "no modality 'id'"),
        ({"modalities": (), "item_ids": False}, "nothing to show"),
    ):
        with pytest.raises(DataError, match=message):
            views(small_catalogue(20), **changes)
