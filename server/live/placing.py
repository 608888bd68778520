"""Asks for what places the new items of a run that goes on (`views.fold_in`): one sum over people before its first round."""

import logging
import math

import torch

from tessera.common.errors import HeldBack
from tessera.common.protocol.messages import BASIS, COUNTS
from tessera.common.protocol.tensors import Tensors
from tessera.server.federated_stats import Statistics, first_views
from tessera.server.run_folder import Progress
from tessera.server.strategies.base import Strategy
from tessera.server.tasks import Tasks
from tessera.server.views.fold_in import fold_in, spanned

log = logging.getLogger("tessera.server")


def begin_views(
    tasks: Tasks, strategy: Strategy, statistics: Statistics, n_items: int, progress: Progress | None
) -> None:
    """Have the views begin where sums over people say: those of a new run, or new items of one that goes on with `progress`."""
    first_views(tasks, strategy, statistics, n_items, tasks.settings)
    if progress and progress.n_placed:
        place_new_items(tasks, strategy, statistics, progress)


def place_new_items(tasks: Tasks, strategy: Strategy, statistics: Statistics, progress: Progress) -> None:
    """Place the items after the first `progress.n_placed` by a sum over people, and write the checkpoint anew that the run
    began with: a resumed run does not ask again.

    Items of fewer than `views.spectral_min_people` people stay where their contents place them, as far as the counts are known.
    So do all where devices hold the sum back, which would differ by a few people from an earlier one. Items of before stay as
    they are. Raises `RunError` where too few answer.
    """
    if tables := strategy.item_tables():
        try:
            _place(tasks, strategy, statistics, tables, progress.n_placed or 0)
        except HeldBack as reason:
            log.warning("%s; new items are placed by their contents alone", reason)
    tasks.folder.save(tasks.round, strategy.state(), progress.model_copy(update={"n_placed": None}))


def _place(tasks: Tasks, strategy: Strategy, statistics: Statistics, tables: Tensors, n_placed: int) -> None:
    own = {name: table.cpu() for name, table in tables.items()}
    first = next(iter(own.values()))
    counts = statistics.counts.get(COUNTS, torch.full((len(first),), math.inf))
    known = torch.nonzero(counts >= tasks.settings.views.spectral_min_people)[:, 0]
    old = known < n_placed
    if old.all() or not old.any():
        return
    basis = spanned(first[known])
    asked = first.new_zeros(len(first), basis.shape[1]).index_copy_(0, known, basis)
    product = tasks.send("power", {BASIS: asked}, {BASIS: asked.shape}).update.counts[BASIS][known]
    placed = ~old & product.any(1)
    found = fold_in({name: table[known] for name, table in own.items()}, basis, product, old)
    strategy.place(known[placed], {name: table[placed] for name, table in found.items()})
    log.info("%d new items are placed by who has them, of %d", int(placed.sum()), len(first) - n_placed)
