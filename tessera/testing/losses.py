"""What every loss must fulfil."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tessera.client.histories import Histories, histories
from tessera.client.losses import contrast, find_loss, pick
from tessera.common.data.interactions import Split
from tessera.common.registry.losses import LOSSES
from tessera.testing.data import small_split

N_USERS, N_ITEMS = 5, 30


@dataclass
class GivenScores:
    """Scores [n_users, n_items] that are there already."""

    values: Tensor

    def everything(self) -> Tensor:
        """All of them."""
        return self.values

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Those of users and items side by side."""
        return pick(self.values, users, items)

    def contrast(self, asked: Histories) -> tuple[Tensor, Tensor]:
        """Of all of them, and of events."""
        return contrast(self.values, asked)

    def alone(self, items: Tensor) -> Tensor:
        """Two views of them: as large as cosines, and one weaker than the other."""
        likeness = torch.tanh(self.values)[:, items]
        return torch.stack([likeness, likeness.sin() / 2], dim=1)


class LossContract:
    """Inherit it, and name a loss of the registry."""

    name: str

    def test_it_is_one_finite_number_a_user(self) -> None:
        """[n_users]."""
        values = self._losses(small_split(N_USERS, N_ITEMS), _scores())
        assert values.shape == (N_USERS,)
        assert bool(values.isfinite().all())

    def test_a_users_loss_depends_on_their_own_scores_only(self) -> None:
        """And on some of them."""
        scores = _scores().requires_grad_()
        for user, value in enumerate(self._losses(small_split(N_USERS, N_ITEMS), scores)):
            (gradient,) = torch.autograd.grad(value, scores, retain_graph=True)
            assert [row for row in range(N_USERS) if bool(gradient[row].any())] == [user]

    def test_a_users_loss_is_the_same_in_any_company(self) -> None:
        """So that the number of nodes changes nothing."""
        split, scores = small_split(N_USERS, N_ITEMS), _scores()
        together = self._losses(split, scores)
        for row in range(N_USERS):
            alone = self._losses(split.take(np.array([row])), scores[[row]])
            torch.testing.assert_close(alone[0], together[row], rtol=1e-9, atol=1e-12)

    def test_a_step_down_its_gradient_makes_it_smaller(self) -> None:
        """It says of each user which way is better."""
        split, scores = small_split(N_USERS, N_ITEMS), _scores().requires_grad_()
        before = self._losses(split, scores)
        (gradient,) = torch.autograd.grad(before.sum(), scores)
        after = self._losses(split, scores.detach() - 1e-3 * gradient)
        assert bool((after < before).all())

    def _losses(self, split: Split, scores: Tensor) -> Tensor:
        settings = LOSSES[self.name].settings.model_validate({"name": self.name})
        people = histories(split).to(torch.device("cpu"), torch.float64)
        return find_loss(settings)(GivenScores(scores), people, settings, 7)


def _scores() -> Tensor:
    return torch.randn(N_USERS, N_ITEMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
