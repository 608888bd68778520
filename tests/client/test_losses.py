"""Losses of a cohort: each user's is what torch gives for that user alone; negatives are fair draws of what they have not."""

from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tessera.client.histories import Histories, histories, single
from tessera.client.losses import bce, contrast, sample_negatives, softmax
from tessera.common.registry.losses import BCESettings
from tessera.common.utils import counter_rng
from tests.support.splits import ragged, split_of

SALT = counter_rng.key("test", 1)
FOUR = BCESettings(name="bce")
N_ITEMS = 60
ITEMS = ragged(0, [4, 1, 15, 9, 2], N_ITEMS)


def people() -> Histories:
    return histories(split_of(ITEMS, N_ITEMS))


@dataclass
class Known:
    """Scores that are there already."""

    table: torch.Tensor

    def everything(self) -> torch.Tensor:
        return self.table

    def pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return self.table[users, items]

    def contrast(self, asked: Histories) -> tuple[torch.Tensor, torch.Tensor]:
        return contrast(self.table, asked)


def scores_of(n_users: int, n_items: int = N_ITEMS) -> torch.Tensor:
    return 3 * torch.randn(n_users, n_items, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_softmax_is_each_users_own_cross_entropy() -> None:
    scores = scores_of(5)
    found = softmax(Known(scores), people(), FOUR, SALT)
    for user, items in enumerate(ITEMS):
        alone = cross_entropy(scores[user].expand(len(items), -1), torch.tensor(items))
        torch.testing.assert_close(found[user], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_event", [1, 4])
def test_bce_is_each_users_own_cross_entropy(per_event: int) -> None:
    scores, users = scores_of(5), people()
    found = bce(Known(scores), users, BCESettings(name="bce", negatives=per_event), SALT)
    negatives = sample_negatives(users, per_event, SALT)
    for user, items in enumerate(ITEMS):
        drawn = negatives[users.owners == user].flatten()
        assert len(drawn) == per_event * len(items)
        logits = scores[user][torch.cat([torch.tensor(items), drawn])]
        labels = torch.tensor([1.0] * len(items) + [0.0] * len(drawn), dtype=torch.float64)
        torch.testing.assert_close(
            found[user], binary_cross_entropy_with_logits(logits, labels), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("loss", [softmax, bce])
def test_a_users_gradient_touches_only_their_own_scores(loss) -> None:  # type: ignore[no-untyped-def]
    scores = scores_of(5).requires_grad_()
    found = loss(Known(scores), people(), FOUR, SALT)
    for user in range(5):
        (gradient,) = torch.autograd.grad(found[user], scores, retain_graph=True)
        assert gradient[user].abs().sum() > 0
        assert not gradient[[other for other in range(5) if other != user]].any()


@pytest.mark.parametrize("loss", [softmax, bce])
def test_large_scores_do_not_overflow(loss) -> None:  # type: ignore[no-untyped-def]
    found = loss(Known(1e4 * scores_of(5)), people(), FOUR, SALT)
    assert torch.isfinite(found).all()


def test_negatives_are_never_in_the_users_own_history() -> None:
    users = people()
    drawn = sample_negatives(users, 200, SALT)
    assert drawn.shape == (sum(map(len, ITEMS)), 200)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < N_ITEMS
    assert not users.mask()[users.owners[:, None], drawn].any()


def test_negatives_are_uniform_over_the_rest() -> None:
    owned = ragged(3, [20], N_ITEMS)[0]
    drawn = sample_negatives(single(owned, N_ITEMS, "ann"), 5000, SALT)
    counts = torch.bincount(drawn.flatten(), minlength=N_ITEMS)
    rest = [item for item in range(N_ITEMS) if item not in owned]
    assert int(counts[owned].sum()) == 0
    assert stats.chisquare(counts[rest].numpy()).pvalue > 1e-5


def test_each_event_has_draws_of_its_own() -> None:
    drawn = sample_negatives(single(ragged(3, [20], N_ITEMS)[0], N_ITEMS, "ann"), 40, SALT)
    assert len({tuple(row) for row in drawn.tolist()}) == 20
    assert all(len(set(row)) > 10 for row in drawn.tolist())


def test_negatives_depend_on_the_user_and_the_salt_alone() -> None:
    """The same user draws the same alone, in any cohort, and whatever the order of their events."""
    users = people()
    drawn = sample_negatives(users, 4, SALT)
    assert torch.equal(drawn, sample_negatives(users, 4, SALT))
    assert not torch.equal(drawn, sample_negatives(users, 4, SALT + 1))
    for user, items in enumerate(ITEMS):
        own = drawn[users.owners == user]
        assert torch.equal(sample_negatives(single(items, N_ITEMS, f"u{user}"), 4, SALT), own)
        backwards = sample_negatives(single(items[::-1], N_ITEMS, f"u{user}"), 4, SALT)
        assert torch.equal(backwards, own.flip(0))
    others = sample_negatives(single(ITEMS[2], N_ITEMS, "somebody else"), 4, SALT)
    assert not torch.equal(others, drawn[users.owners == 2])


def test_a_user_with_almost_the_whole_catalogue_is_served() -> None:
    """Where spare draws do not find the one free item, a draw stays in the history; it never leaves the catalogue."""
    n_items, free = 40, 17
    users = single([item for item in range(n_items) if item != free], n_items, "ann")
    drawn = sample_negatives(users, 50, SALT)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < n_items
    found = float((drawn == free).double().mean())
    expected = 1 - (1 - 1 / n_items) ** 17
    assert abs(found - expected) < 0.06, "one draw and sixteen spare ones each had the chance"
    loss = bce(Known(scores_of(1, n_items)), users, FOUR, SALT)
    assert torch.isfinite(loss).all()


def test_a_user_with_the_whole_catalogue_does_not_break_the_cohort() -> None:
    users = histories(split_of([list(range(8)), [3]], 8))
    for loss in (softmax, bce):
        assert torch.isfinite(loss(Known(scores_of(2, 8)), users, FOUR, SALT)).all()
    assert 3 not in sample_negatives(users, 30, SALT)[8:]


def test_a_user_without_events_costs_nothing() -> None:
    users = histories(split_of([[1, 2], []], 8))
    found = bce(Known(scores_of(2, 8)), users, FOUR, SALT)
    assert float(found[1]) == 0
    assert torch.isfinite(softmax(Known(scores_of(2, 8)), users, FOUR, SALT)).all()
