"""Divides people into groups by sums over them: federated Lloyd on the directions of people's histories (spherical k-means), or
a mixture of densities over them."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tessera.common.config.settings import Settings
from tessera.common.errors import HeldBack
from tessera.common.protocol.messages import GROUP_CENTRES, GROUP_STATES
from tessera.server.strategies.base import Strategy
from tessera.server.tasks import Tasks

log = logging.getLogger("tessera.server")
SHARPEST = 1e3
"""Length of a mixture's centres at most: states count for the nearest alone."""
STILL = 1e-3
"""Centres whose numbers move by less have arrived."""
Asker = Callable[[Tensor], Tensor | None]
"""From centres [n_groups, dim] to people's sums by the nearest one, and how many they are, [n_groups, dim + 1]; None where
devices hold these back."""


def divide(tasks: Tasks, strategy: Strategy, settings: Settings) -> None:
    """Divide people into groups, where that is due: after `local.groups.after` rounds in which all train alike."""
    groups = settings.local.groups
    if not groups.count or strategy.divided:
        return
    if tasks.round <= groups.after:
        if tasks.round == 1 and groups.after >= settings.rounds:
            told = "local.groups.after is %d, and there are %d rounds: nobody is divided into groups in this run"
            log.warning(told, groups.after, settings.rounds)
        return
    centres = torch.zeros(groups.count, 1)
    if groups.by_sums:
        table = strategy.history().half()

        def ask(centres: Tensor) -> Tensor | None:
            shape = torch.Size([groups.count, table.shape[1] + 1])
            inputs = {GROUP_STATES: table, GROUP_CENTRES: centres}
            try:
                return tasks.send("aspects", inputs, {GROUP_STATES: shape}).update.counts[GROUP_STATES]
            except HeldBack as reason:
                log.warning("round %d: people are divided by the centres so far: %s", tasks.round, reason)
                return None

        shares = groups.by == "mixture"
        centres = lloyd(ask, table.float(), groups.count, groups.lloyd_rounds, settings.seed, shares)
    strategy.divide(centres)


def lloyd(ask: Asker, table: Tensor, count: int, rounds: int, seed: int, shares: bool = False) -> Tensor:
    """Centres [count, dim], nearest to which people's states are, of length 1; it ends where nobody moves, and where devices
    hold their sums back.

    They start as items [n_items, dim] that are public, each drawn far from those before (k-means++), so that no upload is
    needed for it. A centre that nobody is near stays where it is. With `shares` centres are those of a mixture of von
    Mises-Fisher densities, all as long as these are concentrated: so long at first that people count for the nearest alone.
    """
    units, generator = normalize(table, dim=1), torch.Generator().manual_seed(seed)
    centres = units[torch.randint(len(units), (1,), generator=generator)]
    for _ in range(count - 1):
        apart = (1 - (units @ centres.T).amax(1)).clamp(min=0) + 1e-12
        centres = torch.cat([centres, units[torch.multinomial(apart, 1, generator=generator)]])
    before, length = None, SHARPEST if shares else 1.0
    for _ in range(rounds):
        if (found := ask(length * centres)) is None:
            break
        totals, counts = found[:, :-1], found[:, -1]
        moved = torch.where((counts > 0)[:, None], normalize(totals, dim=1), centres)
        same = before is not None and torch.equal(counts.round(), before)
        still = float((moved - centres).abs().max()) < STILL
        before, centres = counts.round(), moved
        length = concentration(totals, counts) if shares else 1.0
        if still if shares else same:
            break
    return length * centres


def concentration(totals: Tensor, counts: Tensor) -> float:
    """How sharply unit states lie around their centres: kappa = R (d - R^2) / (1 - R^2) for the mean length R of the sums
    [n_groups, dim] of `counts` [n_groups] states (Banerjee et al. 2005), the same for all groups."""
    mean = float(totals.norm(dim=1).sum() / counts.sum().clamp(min=1))
    mean = min(mean, 1 - 1e-6)
    return min(mean * (totals.shape[1] - mean**2) / (1 - mean**2), SHARPEST)
