"""Trains people in the two ways that the steps around training need: added up at once, or each person's gradients apart."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tessera.client import cohort
from tessera.client.histories import Histories, histories
from tessera.client.per_person.gradients import PersonUpdates
from tessera.client.private_state import PrivateState
from tessera.common.config.settings import LocalSettings
from tessera.common.data.interactions import Split
from tessera.common.protocol.messages import VIEWS
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update

log = logging.getLogger("tessera.device")
FIRST = 16
"""People whose gradients are kept apart at first, until it is known how much memory one takes."""
HELD = 2**23
"""Numbers that the gradients of people who train together may take while they are apart."""


@dataclass(frozen=True)
class CohortTraining:
    """A round of training on what was sent."""

    sent: Tensors
    settings: LocalSettings
    seed: int
    round: int

    def together(self, state: PrivateState, people: Split) -> tuple[PrivateState, Update]:
        """Train all people at once, and add their updates up."""
        return cohort.train(state, self.sent, self._histories(people), self.settings, self.seed, self.round)

    def apart(self, state: PrivateState, people: Split) -> Iterator[tuple[PrivateState, PersonUpdates]]:
        """Train so many people at a time as memory allows, and keep their gradients apart.

        Where a backbone reads what was sent in a way of its own, they train one after the other, many times as slow.
        """
        at, size, able = 0, FIRST, True
        while at < len(people.users):
            rows = np.arange(at, min(at + size, len(people.users)))
            own, chosen = state.take(torch.from_numpy(rows).to(self.sent[VIEWS].device)), people.take(rows)
            if able:
                try:
                    arguments = (own, self.sent, self._histories(chosen), self.settings, self.seed, self.round)
                    moved, updates = cohort.train_apart(*arguments)
                except cohort.NotApart as reason:
                    log.warning("%s: people train one after the other, which is slow", reason)
                    able, size = False, 1
                    continue
                size = max(1, HELD // updates.numbers_a_person())
            else:
                moved, update = self.together(own, chosen)
                updates = PersonUpdates.of(update)
            yield moved, updates
            at += len(rows)

    def _histories(self, people: Split) -> Histories:
        views = self.sent[VIEWS]
        return histories(people).to(views.device, views.dtype)
