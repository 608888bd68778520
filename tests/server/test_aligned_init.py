"""Where views start, and how fast what makes them moves."""

import pytest
import torch
from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.errors import ConfigError, DataError
from tessera.common.protocol.updates import Update
from tessera.server.strategies.fedvlr import FedVLR
from tessera.server.views.generator import RIDGE
from tests.support.catalogues import small_catalogue

N_ITEMS, DIM, RANK = 40, 8, 6


def strategy(**changes: object) -> FedVLR:
    views = {"dim": DIM, "id_dim": DIM, "spectral_scale": 2.0, **changes.pop("views", {})}  # type: ignore[dict-item]
    return FedVLR(
        Settings.model_validate({"name": "start", "data": {"folder": "none"}, "views": views, **changes}),
        small_catalogue(N_ITEMS),
    )


def started(**changes: object) -> tuple[dict[str, Tensor], Tensor]:
    """The views by name after a spectral start, and what the ID view starts as."""
    made = strategy(**changes)
    generator = torch.Generator().manual_seed(1)
    vectors = torch.linalg.qr(torch.randn(N_ITEMS, RANK, generator=generator)).Q
    values = torch.arange(RANK, 0, -1).float()
    made.initialise(vectors, values)
    table = torch.nn.functional.pad(2.0 * vectors * (values / values[0]) ** 0.25, (0, DIM - RANK))
    return dict(zip(made.views, made.generator()["views"].detach(), strict=True)), table


def test_the_id_view_is_the_singular_vectors_and_contents_predict_it() -> None:
    views, table = started()
    torch.testing.assert_close(views["id"][:, :RANK], table[:, :RANK])
    for name in ("image", "text"):
        features = torch.from_numpy(small_catalogue(N_ITEMS).features[name].standardised())
        centred = table - table.mean(0)
        gram = features.T @ features + RIDGE * N_ITEMS * torch.eye(features.shape[1])
        expected = features @ torch.linalg.inv(gram) @ features.T @ centred + table.mean(0)
        torch.testing.assert_close(views[name], expected, rtol=1e-4, atol=1e-5)
        assert (views[name] - table).square().sum() < table.square().sum(), "better than nothing"


def test_operators_start_in_the_space_of_what_they_fuse() -> None:
    views, _ = started()
    parts = torch.stack([views[name] for name in ("image", "text", "id")])
    torch.testing.assert_close(views["sum"], parts.sum(0) / 3**0.5)
    assert not views["mlp"].any()
    low, high = parts.amin(0), parts.amax(0)
    assert ((views["attention"] >= low - 1e-5) & (views["attention"] <= high + 1e-5)).all(), "a mean of the parts"


def test_concat_gives_each_modality_dimensions_of_its_own() -> None:
    views, _ = started(views={"operators": ["concat"]})
    expected = torch.cat([views["image"][:, :3], views["text"][:, 3:6], views["id"][:, 6:]], dim=1)
    torch.testing.assert_close(views["concat"], expected)
    with pytest.raises(ConfigError, match="a dimension for each of 3"):
        strategy(views={"operators": ["concat"], "dim": 2})


def test_item_ids_that_are_to_be_noise_stay_noise() -> None:
    views, table = started(views={"noise": ["id"]})
    assert not torch.allclose(views["id"][:, :RANK], table[:, :RANK])


@pytest.mark.parametrize("by_fan_in", [False, True])
def test_a_maps_rate_is_divided_by_its_inputs_if_asked(by_fan_in: bool) -> None:
    made = strategy(server={"optimizer": "adam", "learning_rate": 0.01, "by_fan_in": by_fan_in})
    before = {name: value.detach().clone() for name, value in made.generator.named_parameters()}
    sent = made.build_views()
    made.aggregate(Update({name: torch.ones_like(value, dtype=torch.float32) for name, value in sent.items()}, 1.0))
    after = dict(made.generator.named_parameters())

    def moved(name: str) -> float:
        return float((after[name].detach() - before[name]).abs().max())

    # Adam's first step is its rate, whatever the gradient.
    assert moved("embedding") == pytest.approx(0.01, rel=1e-3)
    assert moved("projections.0.weight") == pytest.approx(0.01 / (12 if by_fan_in else 1), rel=1e-2)
    assert moved("projections.1.weight") == pytest.approx(0.01 / (7 if by_fan_in else 1), rel=1e-2)
    assert moved("projections.1.bias") == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_items_that_nobody_has_start_from_their_contents(scale: float) -> None:
    made = strategy(views={"unseen_scale": scale})
    vectors = torch.linalg.qr(torch.randn(N_ITEMS, RANK, generator=torch.Generator().manual_seed(1))).Q
    vectors[30:] = 0
    made.initialise(vectors, torch.ones(RANK))
    ids = made.generator()["views"][-1].detach()[:, :RANK]
    usual = ids[:30].norm(dim=1).mean()
    torch.testing.assert_close(ids[30:].norm(dim=1), (scale * usual).expand(10), rtol=1e-4, atol=1e-5)
    assert made.generator.history is not None
    torch.testing.assert_close(made.generator.history[:, :RANK].detach(), ids)
    torch.testing.assert_close(ids[:30], 2.0 * vectors[:30])


def test_embeddings_start_with_the_contents_own_inner_products() -> None:
    """Of modalities that need not be shown, each of the same weight; nothing is asked of anybody."""
    catalogue = small_catalogue(N_ITEMS)
    tables = [torch.from_numpy(catalogue.features[name].standardised()) for name in ("image", "text")]
    features = torch.cat([table / table.shape[1] ** 0.5 for table in tables], dim=1)
    u, s, _ = torch.linalg.svd(features, full_matrices=False)
    wanted = u[:, :DIM] * (2.0 * s[:DIM] / s[0])
    made = strategy(views={"start_from": ["image", "text"], "modalities": []}, local={"backbone": "history"})
    assert made.views == ("sum", "mlp", "gate", "attention", "id")
    sent = made.build_views()
    for table in (sent["views"][made.views.index("id")], sent["history"]):
        torch.testing.assert_close(table @ table.T, wanted @ wanted.T, rtol=1e-3, atol=1e-4)
    with pytest.raises(DataError, match="no modality 'sound'"):
        strategy(views={"start_from": ["sound"]})
    with pytest.raises(ValueError, match="views start once"):
        strategy(views={"start_from": ["text"], "spectral_rounds": 3})
