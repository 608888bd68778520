"""VLM2Rec's losses are what its paper says, with the corrections, one person at a time; and InfoNCE where nothing is added."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.client import cohort
from tessera.client.backbones import LazyScores, make_backbone
from tessera.client.contrast.objectives import Compared, crtr, drawn_items, wpcl
from tessera.client.histories import Histories, histories
from tessera.client.losses import softmax
from tessera.common.config.loading import parse_settings
from tessera.common.config.settings import LocalSettings
from tessera.common.errors import ConfigError, DataError
from tessera.common.registry.losses import CRTRSettings, WPCLSettings
from tessera.server.strategies.fedvlr import FedVLR
from tests.support.catalogues import small_catalogue, small_settings, small_split

N_USERS, N_ITEMS, DIM, SALT = 7, 30, 8, 5
NAMES = {"wpcl": (wpcl, WPCLSettings), "crtr": (crtr, CRTRSettings)}


def given(n_views: int = 2, equal: bool = False) -> tuple[LazyScores, Histories, Tensor]:
    """Scores of people's first events by `cosine`, the last event of each as what is asked for, and the views."""
    draws = torch.Generator().manual_seed(3)
    views = torch.randn(n_views, N_ITEMS, DIM, generator=draws, dtype=torch.float64)
    if equal:
        views = views[:1].expand(n_views, -1, -1)
    views = torch.nn.functional.normalize(views, dim=2).requires_grad_()
    people = histories(small_split(N_USERS, N_ITEMS)).to(torch.device("cpu"), torch.float64)
    known, asked = people.cuts(1, SALT)
    settings = LocalSettings.model_validate({"backbone": "cosine"})
    private = {
        name: torch.randn(N_USERS, *shape, generator=draws, dtype=torch.float64) / 4
        for name, shape in (("user", (DIM,)), ("router.scale", (n_views, DIM)), ("router.bias", (n_views,)))
    }
    return (
        LazyScores(make_backbone(settings.backbone), cohort.routed(private, {"views": views}, known, settings)),
        asked,
        views,
    )


def value(name: str, scored: LazyScores, asked: Histories, salt: int = SALT, **settings: Any) -> Tensor:
    loss, kind = NAMES[name]
    return loss(scored, asked, kind.model_validate({"name": name, **settings}), salt)


def naive(scored: LazyScores, asked: Histories, settings: WPCLSettings, salt: int = SALT) -> list[float]:
    """Line by line, for one person after the other."""
    views, known = scored.given.routed.views.detach(), scored.given.histories
    drawn, scores, found = drawn_items(asked, settings.drawn_items, salt).tolist(), scored.everything().detach(), []
    for u in range(len(asked)):
        target, history = int(asked.items[u]), known.items[known.owners == u].tolist()
        z = [views[m, history].sum(0) for m in range(len(views))]  # whose direction is the mean's
        likeness = [[float(torch.cosine_similarity(z[m], row, dim=0)) for row in views[m]] for m in range(len(views))]
        negatives = [item for item in drawn if item != target]
        margins = [own[target] - sum(own[i] for i in negatives) / len(negatives) for own in likeness]
        gap = max(margins) - min(margins)
        w = 1 + settings.penalty * (math.log1p(math.exp(settings.penalty_slope * gap)) - math.log(2))
        others = sum(math.exp(scores[u, i]) for i in range(N_ITEMS) if i != target)
        contrast = -math.log(math.exp(scores[u, target]) / (math.exp(scores[u, target]) + w * others))
        rows = [
            torch.softmax(torch.tensor([own[i] for i in drawn]) / settings.relation_temperature, 0) for own in likeness
        ]
        apart = [float((p * (p / q).log()).sum()) for p in rows for q in rows if p is not q]
        found.append(contrast + settings.relation * sum(apart) / len(apart))
    return found


@pytest.mark.parametrize("n_views", [2, 3])
def test_it_is_the_papers_formula_for_each_person(n_views: int) -> None:
    scored, asked, _ = given(n_views)
    settings = WPCLSettings(
        name="wpcl", penalty=1.3, penalty_slope=4.0, relation=0.7, relation_temperature=0.2, drawn_items=9
    )
    found = wpcl(scored, asked, settings, SALT)
    assert found.tolist() == pytest.approx(naive(scored, asked, settings), rel=1e-6)
    assert value("crtr", scored, asked, drawn_items=9, relation_temperature=0.2).tolist() == pytest.approx(
        ((found - wpcl(scored, asked, settings.model_copy(update={"relation": 0.0}), SALT)) / 0.7).tolist(), rel=1e-6
    )


def test_without_a_penalty_it_is_infonce_exactly_and_so_are_its_gradients() -> None:
    scored, asked, views = given()
    plain, weighed = softmax(scored, asked, None, SALT), value("wpcl", scored, asked, penalty=0.0)
    assert torch.equal(weighed, plain)
    gradients = [torch.autograd.grad(loss.sum(), views, retain_graph=True)[0] for loss in (plain, weighed)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-14)
    some = scored.given.histories.lengths() > 0
    assert torch.equal(value("wpcl", scored, asked) > plain, some), "a gap adds weight to negatives"


def test_equal_views_have_no_gap_and_nothing_to_agree_on() -> None:
    scored, asked, _ = given(equal=True)
    plain = softmax(scored, asked, None, SALT)
    torch.testing.assert_close(value("wpcl", scored, asked, penalty=3.0, relation=2.0), plain, rtol=1e-12, atol=1e-12)
    assert torch.equal(value("crtr", scored, asked), torch.zeros(N_USERS, dtype=torch.float64))


def test_views_that_disagree_are_told_so_in_either_order() -> None:
    scored, asked, _ = given()
    found = value("crtr", scored, asked)
    assert torch.equal(found > 0, scored.given.histories.lengths() > 0)
    routed = scored.given.routed
    turned = LazyScores(scored.backbone, replace(scored.given, routed=replace(routed, views=routed.views.flip(0))))
    torch.testing.assert_close(value("crtr", turned, asked), found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", ["gap", "guide"])
def test_the_strong_view_is_held_where_settings_say_so(loss: str) -> None:
    """What brings views together moves the weak one of each person alone."""
    scored, asked, _ = given()
    compared = Compared.of(scored, asked, WPCLSettings(name="wpcl"), SALT)
    own, others = (part.detach().requires_grad_() for part in (compared.own, compared.others))
    compared = Compared(own, others, compared.counts)
    rows = (scored.given.histories.lengths() > 0).nonzero()[:, 0]
    strong = compared.margins().argmax(1)[rows]
    settings = CRTRSettings(name="crtr", guide="strong")
    value = compared.gap(hold_strong=True) if loss == "gap" else compared.disagreement(settings)
    (moved,) = torch.autograd.grad(value.sum(), others, retain_graph=True)
    assert not moved[rows, strong].any()
    assert bool(moved[rows, 1 - strong].any(1).all())
    both = compared.gap(hold_strong=False) if loss == "gap" else compared.disagreement(CRTRSettings(name="crtr"))
    assert bool(torch.autograd.grad(both.sum(), others)[0][rows, strong].any(1).all())


def test_the_same_items_are_drawn_for_everybody_and_none_that_is_cold() -> None:
    everybody = histories(small_split(N_USERS, N_ITEMS))
    drawn = drawn_items(everybody, 10, SALT)
    assert len(set(drawn.tolist())) == 10
    assert torch.equal(drawn, drawn_items(histories(small_split(3, N_ITEMS)), 10, SALT))
    assert not torch.equal(drawn, drawn_items(everybody, 10, SALT + 1))
    cold = torch.zeros(N_ITEMS, dtype=torch.bool)
    cold[drawn[:4]] = True
    warm = drawn_items(replace(everybody, cold_items=cold), N_ITEMS, SALT)
    assert set(warm.tolist()) == set((~cold).nonzero()[:, 0].tolist())


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="compares by each view alone: cosine, not history"):
        parse_settings({"name": "x", "data": {"folder": "x"}, "local": {"backbone": "history", "loss": "wpcl"}}, "test")
    loss = {"name": "wpcl", "guide": "strong"}
    with pytest.raises(ConfigError, match=r"guide.*it is for local.loss.relation above 0"):
        parse_settings({"name": "x", "data": {"folder": "x"}, "local": {"backbone": "cosine", "loss": loss}}, "test")
    views = {"operators": [], "item_ids": False, "modalities": ["text"], "dim": 8}
    settings = small_settings(local={"backbone": "cosine", "loss": "crtr", "route": "history"}, views=views)
    with pytest.raises(DataError, match="there is one"):
        FedVLR(settings, small_catalogue(N_ITEMS))
