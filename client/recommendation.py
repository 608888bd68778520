"""Does the server's tasks on a device with people: counts, trains and evaluates on their own data.

interactions.parquet, items.parquet     its people's events; the public titles
private/RUN/block-*/round-*.safetensors the private states
features/, tower/                       in runs with towers: what the device's own looks at; see `client.adapters.adapted_tower`
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tessera.client import cohort, evaluation
from tessera.client.aspects.cohesion import cohesion_sum
from tessera.client.aspects.facets import asked_sum
from tessera.client.aspects.groups import assigned, lloyd_sum, people_of_groups
from tessera.client.base import Client
from tessera.client.contrast.collapse import collapse_sums
from tessera.client.histories import Histories, histories
from tessera.client.owner.rules import Own
from tessera.client.people.events import PEOPLE, in_use, load_people
from tessera.client.people.refresh import Refreshed
from tessera.client.per_person.training import CohortTraining
from tessera.client.privacy import without_figures
from tessera.client.private_state import PrivateState, Store, together
from tessera.client.published.catalogue import keep_up
from tessera.client.router import side_by_side
from tessera.client.transforms import Origin, transforms
from tessera.common.config.device import DeviceSettings, SplitSettings
from tessera.common.config.settings import has_prior
from tessera.common.data.catalogue import ITEMS, Catalogue, load_catalogue
from tessera.common.data.folder_kinds import INTERACTIONS
from tessera.common.data.interactions import Interactions, Split
from tessera.common.data.splits import make_split
from tessera.common.errors import DataError, PolicyRefused
from tessera.common.metrics.names import NEW_USERS, TEST, UNTRAINED, VALIDATION
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.codecs import decode, rotation
from tessera.common.protocol.figures import TIED
from tessera.common.protocol.messages import (
    BASIS,
    COHESION,
    COUNTS,
    GROUP_PEOPLE,
    GROUP_STATES,
    HISTORY,
    RIDERS,
    VIEWS,
    Ancestor,
    Task,
)
from tessera.common.protocol.projection import Projection
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import digest
from tessera.common.utils.torch_device import resolve_device

if TYPE_CHECKING:
    from tessera.client.tower_view import TowerView


EVALUATED = 128
"""People who are evaluated at once: what is counted among their scores stays in the processor's cache."""


class RecommendationClient(Client):
    """One node's people and their private data."""

    n_items: int | None = None
    """How many items are known of here, the first ones, where a model is of an earlier catalogue; None: all."""
    _split: "tuple[tuple[tuple[int, int], ...], SplitSettings, int, Split] | None" = None
    """What was read last: the version of the tables, how and by which seed it was split, the split."""

    def perform(self, task: Task, tensors: Tensors | None, inputs: Tensors) -> Update:
        """Do what the server asks. Raises `TensorsMissing` or `DataError`; private state changes only on success."""
        tower = self.tower(task)
        with nullcontext() if self.simulated else in_use(self.folder):
            update = self._perform(task, tensors, inputs, tower)
        return tower.signed(update) if tower else update

    def renew(self, task: Task, change: bytes) -> None:
        """Take in what changed in the catalogue. Raises `CatalogueOutdated`, or `DataError` for what does not fit; then nothing
        has changed. A device with a tower looks at items' features, which no server sends: it keeps the catalogue it has."""
        if self.catalogue().sha256 == task.catalogue or task.settings.strategy_spec.has_towers:
            return
        with nullcontext() if self.simulated else in_use(self.folder):
            keep_up(self.folder, task.catalogue, change)

    def own(self, task: Task) -> Own:
        """How many people are in the smallest of the sums that a task wants, and how often they have each item."""
        split = self.split(task.settings).training_users()
        numbers = [int(np.count_nonzero(np.diff(split.offsets)))]
        if task.kind in RIDERS:
            numbers += [targets.people for targets in (split.validation, split.test)]
        users = _load(self.folder, _changed(self.folder), self.n_items)[1].users
        who = digest("\x1f".join([str(self.secret()), *sorted(users)]).encode())
        return Own(
            min(filter(None, numbers), default=0),
            torch.from_numpy(split.counts()).float(),
            here=len(users),
            who=who,
        )

    def _perform(self, task: Task, tensors: Tensors | None, inputs: Tensors, tower: "TowerView | None") -> Update:
        settings = task.settings
        if self.catalogue().sha256 != task.catalogue:
            raise DataError(f"{self.folder} has other items than the server's catalogue; use one dataset")
        if task.kind == "select":
            self.hear(task)
            self.tidy()
            return Update()
        split = self.split(settings)
        if task.kind == "item_statistics":
            return _item_statistics(split.training_users(), masked=task.masking is not None)
        target = resolve_device(settings.device)
        inputs = {name: value.to(target, torch.float32) for name, value in inputs.items()}
        people = list(blocks(split, settings.local.batch_users))
        if task.kind == "power":
            return sum((_power(block, inputs[BASIS]) for block in people if not block.is_new), Update())
        if task.kind == "aspects":
            lloyd = partial(lloyd_sum, shares=settings.local.groups.by == "mixture")
            add = lloyd if GROUP_STATES in inputs else asked_sum
            return _of_several(sum((add(block, inputs) for block in people if not block.is_new), Update()), task)
        if task.kind == "baselines":
            baselines = [(block, evaluation.baselines(block, settings.evaluation, inputs, target)) for block in people]
            return Update(sums=sum((_reported(block, sums) for block, sums in baselines), MetricSums()))
        task = self.hear(task)
        if tower:
            tower.task = task
        sent = {name: value.to(target) for name, value in self.sent(task, self.hold(task, tensors)).items()}
        if self.has_owner and not sent[VIEWS].any():
            raise PolicyRefused("views", "the views are all zero: what comes back for them would be counts of items")
        sent = tower.beside(sent) if tower else sent
        sent[VIEWS] = side_by_side(sent[VIEWS])  # once for all blocks
        work = self._train if task.kind == "train" else self._evaluate
        total = Update()
        for number, block in enumerate(people):
            total += work(task, sent, inputs, block, number)
        if task.kind == "train":
            total = tower.learn(total, sent) if tower else total
            total = total if task.masking else _without_one(total)
            Store(self.private(task.run)).tidy(task.round, task.durable)
        if settings.privacy.distributed and task.kind == "train":
            people_there = np.count_nonzero(np.diff(split.training_users().offsets))
            total = without_figures(total, settings.fraction * people_there)
        note = self.conclude(task)
        if task.kind == "train":
            Refreshed(self, task.run).tidy((note.last, *note.kept))
        return total

    def sent(self, task: Task, held: Tensors) -> dict[str, Tensor]:
        """What the server sent for a task, float32, from what this device holds of it."""
        settings, items = task.settings, (len(self.catalogue()), task.settings.views.dim)
        shapes = {VIEWS: (len(task.views), *items), HISTORY: items}
        return decode(held, shapes, settings.wire.views, rotation(settings.seed))

    def tower(self, task: Task) -> "TowerView | None":
        """The device's own view, in runs with one. PEFT is read only there: a device should start fast."""
        if not task.settings.strategy_spec.has_towers:
            return None
        from tessera.client.tower_view import TowerView

        return TowerView.of(self, task)

    def split(self, settings: DeviceSettings) -> Split:
        """Read this device's people's events, split as the run's settings say."""
        version = _changed(self.folder)
        if self._split is None or self._split[:3] != (version, settings.data, settings.seed):
            catalogue, interactions = _load(self.folder, version, self.n_items)
            split = make_split(interactions, settings.data, settings.seed, catalogue.retired)
            self._split = version, settings.data, settings.seed, split
        return self._split[3]

    def people(self) -> int:
        """How many people are on this device."""
        return len(_load(self.folder, _changed(self.folder), self.n_items)[1].users)

    def catalogue(self) -> Catalogue:
        """Read what the device can show of the items."""
        return _load(self.folder, _changed(self.folder), self.n_items)[0]

    def state(self, task: Task, users: tuple[str, ...], block: int, views: Tensor) -> PrivateState:
        """Private state of users before `task`, on the views' device; those without one start afresh.

        `block` is where they are computed, and mostly were before: their states are looked for there first.
        """
        local, seed = task.settings.local, task.settings.seed
        kept = self.kept(task, users, block, views)
        if kept is None:
            return cohort.start_state(users, local, views.cpu(), seed).to(views.device)
        if missing := tuple(user for user in users if user not in set(kept.users)):
            kept = together([kept, cohort.start_state(missing, local, views.cpu(), seed)]).of(users)
        return kept.to(views.device)

    def kept(self, task: Task, users: tuple[str, ...], block: int, views: Tensor) -> PrivateState | None:
        """What is kept of users before `task`, of those who have something, in that order; None where nobody has.

        Who has no state in the task's run has the one of the nearest run that it continues. Raises `DataError` for states of
        another model.
        """
        local, seed, found, missing = task.settings.local, task.settings.seed, list[PrivateState](), users
        wanted = cohort.start_state(users[:1], local, views.cpu(), seed).shapes()
        runs = (Ancestor(task.run, task.round - (task.kind == "train")), *task.continues)
        for run, last in runs:
            if missing and (state := Store(self.private(run)).find(missing, last + 1, block)):
                state = cohort.grown(state, local, views.cpu(), seed)
                if state.shapes() != wanted:
                    raise DataError(f"the private states of run {run} are of another model; start a new run")
                found.append(state)
                missing = tuple(user for user in missing if user not in set(state.users))
        if not found:
            return None
        return (together(found) if len(found) > 1 else found[0]).of(users)

    def _train(self, task: Task, sent: Tensors, inputs: Tensors, block: Split, number: int) -> Update:
        settings = task.settings
        state = self.state(task, block.users, number, sent[VIEWS])
        state = assigned(state, block, sent, settings.local.groups, self.folder)
        people = histories(block)
        draws = counter_rng.uniform(counter_rng.key("participation", self.participation(task), task.round), people.keys)
        rows = torch.from_numpy(np.flatnonzero((draws < settings.fraction).numpy() & (people.lengths() > 0).numpy()))
        if not len(rows):
            return Update()
        active, rows = block.take(rows.numpy()), rows.to(sent[VIEWS].device)
        algorithm = CohortTraining(sent, settings.local, settings.seed, task.round)
        origin = Origin(settings.seed, task.round, simulated=self.simulated)
        moved, update = transforms(settings, Projection.of(task)).train(algorithm, state.take(rows), active, origin)
        Store(self.private(task.run)).save(number, task.round, state.put(rows, moved))
        if block.is_new:
            return Update()  # what new users learn is for themselves alone
        if settings.local.groups.count and not settings.privacy.noise_multiplier:
            update += Update(counts={GROUP_PEOPLE: people_of_groups(moved, settings.local.groups)})
        return update + _cohesion(active, sent[VIEWS][: len(task.views)], settings)

    def _evaluate(self, task: Task, sent: Tensors, inputs: Tensors, block: Split, number: int) -> Update:
        settings, target = task.settings, sent[VIEWS].device

        def sums(state: PrivateState) -> MetricSums:
            total = MetricSums()
            for start in range(0, len(block.users), EVALUATED):
                rows = np.arange(start, min(start + EVALUATED, len(block.users)))
                own = state.take(torch.from_numpy(rows).to(target)).parameters
                scorer = partial(_scores, own, sent, settings)
                total += evaluation.evaluate(scorer, block.take(rows), settings.evaluation, inputs.get(COUNTS), target)
            return total

        state = self.state(task, block.users, number, sent[VIEWS])
        total = _reported(block, sums(state))
        if settings.evaluation.collapse and not block.is_new:
            shown = partial(cohort.compare, state.parameters, sent, settings=settings.local)
            total += collapse_sums(shown, block, settings.evaluation, task.views, target)
        if block.is_new:
            fresh = cohort.start_state(block.users, settings.local, sent[VIEWS].cpu(), settings.seed)
            total += evaluation.as_group(sums(fresh.to(target)), UNTRAINED)
        return Update(sums=total)


def _scores(own: dict[str, Tensor], sent: Tensors, settings: DeviceSettings, users: Histories) -> Tensor:
    return cohort.scores(own, sent, users, settings.local)[0]


def blocks(split: Split, size: int) -> Iterator[Split]:
    """Cut a device's people into blocks of `size`, trained and stored one after the other; new users are in the last ones."""
    for people in (split.training_users(), split.new_users()):
        for start in range(0, len(people.users), size):
            yield people.take(np.arange(start, min(start + size, len(people.users))))


def _reported(block: Split, sums: MetricSums) -> MetricSums:
    """Sums of a block as they are reported: those of new users apart."""
    return evaluation.as_group(sums, NEW_USERS) if block.is_new else sums


def _item_statistics(split: Split, masked: bool) -> Update:
    """How many people and events there are, and how often each item occurs; one person's counts would be their history,
    so outside a secure sum a device with one person withholds them, and whether its targets are tied."""
    held_out = {VALIDATION: split.validation, TEST: split.test}
    sums = {"users": len(split.users), "events": len(split.train_items)}
    sums |= {name: targets.people for name, targets in held_out.items()}
    if len(split.users) == 1 and not masked:
        return Update(sums=MetricSums({name: float(value) for name, value in (sums | {"withheld": 1}).items()}))
    sums |= {"withheld": 0} | {TIED[name]: targets.tied_people for name, targets in held_out.items()}
    counts = {COUNTS: torch.from_numpy(split.counts()).float()}
    return Update(sums=MetricSums({name: float(value) for name, value in sums.items()}), counts=counts)


def _of_several(total: Update, task: Task) -> Update:
    """The same, of more than one person: in clear one person's would be their taste. Raises `PolicyRefused`."""
    if total.sums["users"] == 1 and not task.masking:
        raise PolicyRefused("people", "a sum of one person, in no secure sum, would be what they like")
    return total


def _cohesion(people: Split, views: Tensor, settings: DeviceSettings) -> Update:
    """How alike people's items are in each of the server's views, where routers are told what that says."""
    if not has_prior(settings.local, settings.privacy, len(views)):
        return Update()
    known = histories(people).to(views.device, views.dtype).aged(settings.local.recency)
    return Update(counts={COHESION: cohesion_sum(known, views)})


def _without_one(total: Update) -> Update:
    """The same without how alike items are, where in a view that is of one person alone: it would be what they go by. Nor is it
    said that one person alone is in a group."""
    counts = {name: value for name, value in total.counts.items() if name != COHESION or 1 not in value[1]}
    if (groups := counts.get(GROUP_PEOPLE)) is not None:
        counts[GROUP_PEOPLE] = torch.where(groups == 1, 0, groups)
    return replace(total, counts=counts)


def _power(block: Split, basis: Tensor) -> Update:
    """One power iteration's share: sum_u x_u (x_u^T basis), [n_items, width], with x_u = r_u / |history|^(1/4).

    Items whose rows of the basis are zero are left out: their rows of the product are zero too. A person's part of the trace
    of basis^T product is at most |x_u|^2 = sqrt(|history|), so that of n people with m events is at most sqrt(n m).
    """
    people = histories(block).to(basis.device, basis.dtype)
    totals = people.total(basis) / people.sizes().sqrt()[:, None]
    product = torch.zeros_like(basis).index_add_(0, people.items, totals[people.owners])
    return Update(counts={BASIS: product * basis.any(1, keepdim=True)})


def _changed(folder: Path) -> tuple[tuple[int, int], ...]:
    """What tells a version of a device's tables from another: a change is another file."""
    found = (path.stat() for path in (folder / INTERACTIONS, folder / PEOPLE, folder / ITEMS) if path.exists())
    return tuple((stat.st_mtime_ns, stat.st_ino) for stat in found)


@lru_cache(maxsize=8)
def _load(
    folder: Path, changed: tuple[tuple[int, int], ...], n_items: int | None = None
) -> tuple[Catalogue, Interactions]:
    """Read a device's tables, of the first items alone where `n_items` says so.

    A process of few devices reads them once per version of the file; a worker that comes by at many reads them again, which
    takes milliseconds, and does not grow with their number.
    """
    catalogue = load_catalogue(folder, modalities=False)
    people = load_people(folder, len(catalogue))
    if n_items is None or n_items == len(catalogue):
        return catalogue, people
    return catalogue.take(np.arange(n_items)), people.of_first(n_items)
