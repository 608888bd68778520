"""What every backbone must fulfil, whatever it computes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tessera.client import cohort
from tessera.client.histories import Histories, histories
from tessera.client.private_state import PrivateState
from tessera.common.config.settings import LocalSettings
from tessera.common.data.interactions import Split
from tessera.common.protocol.messages import HISTORY, VIEWS
from tessera.common.protocol.updates import Update, pack_update
from tessera.common.registry.backbones import BACKBONES
from tessera.testing.data import small_split

N_USERS, N_ITEMS, N_VIEWS, DIM = 6, 30, 3, 8
RTOL, ATOL = 1e-7, 1e-9


class BackboneContract:
    """Inherit it, and name a backbone of the registry; `local` are settings that it is trained with.

    All is computed in double precision, so that the tolerances are tight.
    """

    name: str
    local: ClassVar[Mapping[str, Any]] = {}

    def naive_score(
        self, private: Mapping[str, Tensor], sent: Mapping[str, Tensor], fbar: Tensor, items: list[int], item: int
    ) -> Tensor | None:
        """The score of one item for one user as the paper writes it; None where a backbone does without.

        `private` are the user's own parameters, `fbar` [n_items, dim] the views as the user weighs them, `items` the history.
        """
        return None

    def test_scores_are_those_of_the_naive_formula(self) -> None:
        """Where the backbone brings one."""
        split, sent = small_split(4, N_ITEMS), self._sent()
        private = self._random(split)
        scores, weights = cohort.scores(private, sent, _double(split), self._settings())
        assert scores.shape == (4, N_ITEMS)
        for u in range(4):
            own = {name: value[u] for name, value in private.items()}
            fbar = torch.einsum("g,gnd->nd", weights[u], sent[VIEWS])
            items = split.train_items[split.offsets[u] : split.offsets[u + 1]].tolist()
            naive = [self.naive_score(own, sent, fbar, items, item) for item in range(N_ITEMS)]
            known = [value for value in naive if value is not None]
            if known:
                torch.testing.assert_close(scores[u], torch.stack(known), rtol=1e-9, atol=1e-9)

    def test_a_users_scores_depend_on_their_own_parameters_only(self) -> None:
        """Row u of the scores does not move when any other user's parameters do."""
        split, sent = small_split(N_USERS, N_ITEMS), self._sent()
        private = self._random(split)
        before = cohort.scores(private, sent, _double(split), self._settings())[0]
        changed = {name: value.clone() for name, value in private.items()}
        for value in changed.values():
            value[1] += 1
        after = cohort.scores(changed, sent, _double(split), self._settings())[0]
        others = [row for row in range(N_USERS) if row != 1]
        torch.testing.assert_close(after[others], before[others], rtol=RTOL, atol=ATOL)

    def test_a_cohort_equals_its_users_one_at_a_time(self) -> None:
        """Whoever is trained beside whom changes nobody's parameters, and the gradients add up."""
        split = small_split(N_USERS, N_ITEMS)
        together, total = self._trained(split)
        alone = [self._trained(split.take(np.array([row]))) for row in range(N_USERS)]
        for row, (state, _) in enumerate(alone):
            for name, value in (together.parameters | together.optimizer).items():
                torch.testing.assert_close(
                    value[row], (state.parameters | state.optimizer)[name][0], rtol=RTOL, atol=ATOL
                )
        added = sum((update for _, update in alone), Update())
        for name, gradient in total.gradients.items():
            torch.testing.assert_close(added.gradients[name], gradient, rtol=1e-6, atol=1e-9)

    def test_gradients_are_of_all_that_was_sent_and_nothing_else(self) -> None:
        """By name and shape; finite, and not all zero."""
        _, update = self._trained(small_split(N_USERS, N_ITEMS))
        assert {n: g.shape for n, g in update.gradients.items()} == {n: v.shape for n, v in self._sent().items()}
        assert all(bool(gradient.isfinite().all()) for gradient in update.gradients.values())
        assert float(update.gradients[VIEWS].abs().max()) > 0
        assert not update.parts

    def test_no_private_parameter_is_in_an_update(self) -> None:
        """Looked for as bytes, in double and in single precision."""
        state, update = self._trained(small_split(N_USERS, N_ITEMS))
        single = replace(update, gradients={name: gradient.float() for name, gradient in update.gradients.items()})
        contents = [pack_update(update), pack_update(single)]
        arrays = [
            array for content in contents for record in content.array_records.values() for array in record.values()
        ]
        said = b"".join(array.data for array in arrays)
        for name, value in (state.parameters | state.optimizer).items():
            for row in value:
                if row.numel() >= 4 and float(row.abs().max()) > 0:
                    assert row.numpy().tobytes() not in said, name
                    assert row.float().numpy().tobytes() not in said, name

    def _settings(self) -> LocalSettings:
        given = {"backbone": self.name, "learning_rate": 0.05, **self.local}
        return LocalSettings.model_validate(given)

    def _sent(self) -> dict[str, Tensor]:
        spec = BACKBONES[self.name]
        shared = spec.shared(DIM, self._settings().backbone)
        shapes = {VIEWS: (N_VIEWS, N_ITEMS, DIM), **{name: one.shape for name, one in shared.items()}}
        if spec.history:
            shapes[HISTORY] = (N_ITEMS, DIM)
        draws = torch.Generator().manual_seed(0)
        return {name: 0.3 * torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in shapes.items()}

    def _random(self, split: Split) -> dict[str, Tensor]:
        """Parameters of all users that are nobody's start."""
        state, draws = self._start(split), torch.Generator().manual_seed(1)
        return {
            name: torch.randn(value.shape, generator=draws, dtype=torch.float64)
            for name, value in state.parameters.items()
        }

    def _start(self, split: Split) -> PrivateState:
        return cohort.start_state(split.users, self._settings(), self._sent()[VIEWS], seed=1)

    def _trained(self, split: Split) -> tuple[PrivateState, Update]:
        """Two rounds."""
        state, total = self._start(split), Update()
        for round in (1, 2):
            state, update = cohort.train(state, self._sent(), _double(split), self._settings(), seed=1, round=round)
            total += update
        return state, total


def _double(split: Split) -> Histories:
    return histories(split).to(torch.device("cpu"), torch.float64)
