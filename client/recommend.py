"""Recommends items from the device's own files: nothing is asked of a server."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tessera.client import cohort
from tessera.client.backbones import BackboneInput, make_backbone
from tessera.client.histories import Histories, histories
from tessera.client.people.preferences import Preferences, preferences_of
from tessera.client.people.refresh import Refreshed, refreshed
from tessera.client.private_state import PrivateState, Store, Version
from tessera.client.published.model import held_model, popularity
from tessera.client.recommendation import RecommendationClient, blocks
from tessera.client.run_note import Moment, RunNote
from tessera.common.data.interactions import Split
from tessera.common.errors import DataError
from tessera.common.protocol.codecs import ITEMS as LISTED
from tessera.common.protocol.messages import VIEWS, Ancestor, Task
from tessera.common.protocol.published import Published
from tessera.common.protocol.tensors import Tensors
from tessera.common.registry.backbones import BACKBONES
from tessera.common.utils.atomic_files import read_tensors

log = logging.getLogger("tessera.device")
BasedOn = Literal["training", "history", "popularity"]
"""What recommendations are made from: what a person's device learnt of them; their history alone, before they have trained; or
what is popular, where nothing else is known."""


@dataclass(frozen=True)
class Recommendation:
    """One item: its title and score, the view that speaks most for it, and the title in the history it resembles there."""

    item: str
    title: str
    score: float
    view: str
    like: str


@dataclass(frozen=True)
class Explanation:
    """What speaks for an item, and against it, for one person.

    `place` is its rank among what the person has not had, None where they had it. `parts` has by view what it adds to the
    score beside the mean of all items, `like` the title in the history that is nearest in that view.
    """

    item: str
    title: str
    score: float
    place: int | None
    parts: dict[str, float]
    like: dict[str, str]


@dataclass(frozen=True)
class _Person:
    """One person's name, events, private state, and whether it was trained, or is a start."""

    user: str
    split: Split
    state: PrivateState
    trained: bool


@dataclass(frozen=True)
class Personal:
    """What a device learnt in one run, as the selected round left it: the views of that round, its own among them, and each
    block of people with their private parameters. `task.views` names all views, `task.round` is the round.

    Until the server has said which round is the best, it is the last one."""

    device: RecommendationClient
    task: Task
    sent: dict[str, Tensor]
    _read: dict[str, tuple[Version, PrivateState, bool]] = field(default_factory=dict, repr=False, compare=False)
    """What was read of people before: the version of the files, the private state, and whether they had one."""

    @classmethod
    def open(cls, folder: Path, run: str | None = None) -> "Personal":
        """Open the newest run of a device's folder, or the one called `run`; or the model that was pulled, where there is no
        such run here, or that is of a later round. Raises `DataError` when there is neither."""
        notes = sorted((folder / "private").glob(f"{run or '*'}/run.json"), key=lambda path: path.stat().st_mtime)
        note, model = RunNote.read(notes[-1]) if notes else None, held_model(folder)
        if model and run in (None, model.run) and (note is None or _ahead(model, note)):
            return cls._pulled(folder, model)
        if note is None:
            which = f" of run {run}" if run else ""
            raise DataError(
                f"{folder} holds no model{which}: it has not trained yet, nor pulled one (`tessera device pull`)"
            )
        device, moment = RecommendationClient(folder), note.shown
        try:
            tensors, _ = read_tensors(device.tensors(moment.tensors))
        except DataError as error:
            if moment == note.last:
                raise
            log.warning("%s: recommending by the last round instead of the best", error)
            moment = note.last
            tensors, _ = read_tensors(device.tensors(moment.tensors))
        device.n_items = _n_items(tensors)
        items = device.catalogue().sha256
        task = Task(
            "evaluate",
            note.run,
            moment.round,
            (),
            note.views,
            items,
            note.settings,
            moment.tensors,
            continues=note.continues,
        )
        sent = device.sent(task, tensors)
        if tower := device.tower(task):
            task, sent = replace(task, views=(*note.views, tower.name)), tower.beside(sent)
        return cls(device, task, sent | {VIEWS: _by_item(sent[VIEWS])})

    @classmethod
    def _pulled(cls, folder: Path, model: Published) -> "Personal":
        """What there is of a published model on a device: its views and, where people trained in that run, their states."""
        device = RecommendationClient(folder)
        device.n_items = model.catalogue.n_items
        items, settings = model.catalogue.sha256, model.settings
        before = tuple(Ancestor(one.run, one.round) for one in model.continues)
        task = Task(
            "evaluate", model.run, model.round, (), model.views, items, settings, model.tensors, continues=before
        )
        sent = device.sent(task, read_tensors(device.tensors(model.tensors))[0])
        return cls(device, task, sent | {VIEWS: _by_item(sent[VIEWS])})

    def people(self) -> list[tuple[Split, dict[str, Tensor]]]:
        """The people of this device, block by block, with their private parameters [n_users, ...]."""
        settings = self.task.settings
        split = blocks(self.device.split(settings), settings.local.batch_users)
        views = self.sent[VIEWS]
        return [
            (block, self.device.state(self.task, block.users, n, views).parameters) for n, block in enumerate(split)
        ]

    def weights(self) -> dict[str, list[float]]:
        """How each person weighs the views, by user: the router's output for their history, in the order of `task.views`."""
        found: dict[str, list[float]] = {}
        for split, private in self.people():
            given = cohort.routed(private, self.sent, histories(split), self.task.settings.local)
            found |= dict(zip(split.users, given.routed.weights.tolist(), strict=True))
        return found

    def reliance(self) -> dict[str, list[float]]:
        """How far each person goes by each view, shares that sum to 1: by user, in the order of `task.views`.

        A view's share is the standard deviation over the catalogue of its part in the person's scores, over the sum of
        those of all views: the router's weight alone does not say how far apart the view sets the items for this person.
        """
        found: dict[str, list[float]] = {}
        for split, private in self.people():
            shares = _shares(self._parts(self._routed(private, histories(split))))
            found |= dict(zip(split.users, shares.tolist(), strict=True))
        return found

    def weights_of(self, user: str) -> dict[str, float]:
        """How one person's router weighs the views, by view. Raises `DataError` for a stranger."""
        person = self._person(user)
        private, known = person.state.parameters, histories(person.split)
        given = cohort.routed(private, self.sent, known, self.task.settings.local)
        return dict(zip(self.task.views, given.routed.weights[0].tolist(), strict=True))

    def reliance_of(self, user: str) -> dict[str, float]:
        """How far one person goes by each view, as `reliance` has it. Raises `DataError` for a stranger."""
        person = self._person(user)
        parts = self._parts(self._routed(person.state.parameters, histories(person.split)))
        return dict(zip(self.task.views, _shares(parts)[0].tolist(), strict=True))

    def recommend(self, user: str, k: int) -> tuple[list[Recommendation], dict[str, float]]:
        """The k best items a person has not had, and the person's reliance by view, which is empty where `based_on` says
        popularity. Raises `DataError` for a stranger, or where nothing is known to recommend by."""
        person, wanted = self._person(user), preferences_of(self.device.folder, user)
        if self._based_on(person) == "popularity":
            return self._popular(person, wanted, k), {}
        known, scores, parts = self._scored(person, wanted)
        out = self._out(known, wanted)
        best = scores.masked_fill(out, -torch.inf).topk(min(k, int((~out).sum()))).indices
        views, like = self._reasons(parts, known, best)
        catalogue = self.device.catalogue()
        ids, title = catalogue.items, catalogue.title
        found = [
            Recommendation(ids[i], title(i), float(scores[i]), self.task.views[j], title(h))
            for i, j, h in zip(best.tolist(), views.tolist(), like.tolist(), strict=True)
        ]
        return found, dict(zip(self.task.views, _shares(parts)[0].tolist(), strict=True))

    def explain(self, user: str, index: int) -> Explanation:
        """What speaks for the item `index`, and against it, for a person. Raises `DataError` for a stranger, or where there is
        nothing to explain by: nobody has trained, and there is no event yet; or the model does not know the item."""
        catalogue = self.device.catalogue()
        if index >= self.sent[VIEWS].shape[1]:
            raise DataError(
                f"{catalogue.title(index)!r} is new: the model of round {self.task.round} does not know it yet"
            )
        person, wanted = self._person(user), preferences_of(self.device.folder, user)
        known, scores, parts = self._scored(person, wanted)
        mine = torch.full((len(parts),), index), torch.arange(len(parts))
        nearest = known.items[self._nearest(mine[1], mine[0], known)].tolist()
        out = self._out(known, wanted)
        better = int((scores > scores[index])[~out].sum())
        return Explanation(
            item=catalogue.items[index],
            title=catalogue.title(index),
            score=float(scores[index]),
            place=None if out[index] else better + 1,
            parts={name: float(part[0, index]) for name, part in zip(self.task.views, parts, strict=True)},
            like={name: catalogue.title(item) for name, item in zip(self.task.views, nearest, strict=True)},
        )

    def based_on(self, user: str) -> BasedOn:
        """What recommendations to a person are made from. Raises `DataError` for a stranger."""
        return self._based_on(self._person(user))

    def _based_on(self, person: _Person) -> BasedOn:
        if not len(_everything(person.split).items):
            return "popularity"
        if person.trained:
            return "training"
        return "history" if BACKBONES[self.task.settings.local.backbone.name].reads_history else "popularity"

    def _out(self, known: Histories, wanted: Preferences) -> Tensor:
        """Which items are not recommended to a person whose history is `known`, [n_items]: what they had, what they do not want
        to see, and what is retired."""
        catalogue, out = self.device.catalogue(), known.mask()[0]
        if hidden := set(wanted.hidden):
            out[[row for row, item in enumerate(catalogue.items) if item in hidden]] = True
        return out if catalogue.retired is None else out | torch.from_numpy(catalogue.retired)

    def _scored(self, person: _Person, wanted: Preferences) -> tuple[Histories, Tensor, list[Tensor]]:
        """Everything a person had, their scores [n_items], and each view's part in them, [1, n_items] each: with the views
        counting as the person asks."""
        known = self._known(person)
        everything = self._leaning(self._routed(person.state.parameters, known), wanted)
        scores = make_backbone(self.task.settings.local.backbone).scores(everything)[0]
        return known, scores, list(self._parts(everything))

    def _known(self, person: _Person) -> Histories:
        """All that a person had. Raises `DataError` for somebody without any event."""
        known = _everything(person.split)
        if not len(known.items):
            raise DataError(f"{person.user!r} has no event yet: add one with `tessera device add-event`")
        return known

    def _popular(self, person: _Person, wanted: Preferences, k: int) -> list[Recommendation]:
        """The k most popular items a person has not had, of equally popular ones the first. Raises `DataError`."""
        levels, known = popularity(self.device.folder), _everything(person.split)
        if levels is None:
            why = "has no event yet: add one with `tessera device add-event`"
            if len(known.items):
                why = f"has not trained yet, and backbone {self.task.settings.local.backbone.name} knows nobody before"
            raise DataError(
                f"{person.user!r} {why}; or pull what is popular, if a server publishes it (`tessera device pull`)"
            )
        catalogue = self.device.catalogue()
        had = self._out(known, wanted)
        levels = pad(levels, (0, len(catalogue) - len(levels))).masked_fill(had, -1)
        best = levels.sort(descending=True, stable=True).indices[: min(k, int((~had).sum()))].tolist()
        return [
            Recommendation(catalogue.items[i], catalogue.title(i), float(levels[i]), "popularity", "") for i in best
        ]

    def _person(self, user: str) -> _Person:
        """A person's events and private state, read and used alone: whoever else is here changes no bit of the rest."""
        split = self.device.split(self.task.settings)
        if user not in split.users:
            raise DataError(f"user {user!r} is not on this device ({self.device.folder})")
        row = split.users.index(user)
        runs = (self.task.run, *(earlier.run for earlier in self.task.continues))
        version = tuple(file for run in runs for file in Store(self.device.private(run)).version())
        if (kept := self._read.get(user)) is None or kept[0] != version:
            block = row // self.task.settings.local.batch_users
            state = Refreshed(self.device, self.task.run).load(user, self._moment)
            trained = (state or self.device.kept(self.task, (user,), block, self.sent[VIEWS])) is not None
            kept = version, state or self.device.state(self.task, (user,), block, self.sent[VIEWS]), trained
            self._read[user] = kept
        return _Person(user, split.take(np.array([row])), *kept[1:])

    def refresh(self, user: str, steps: int) -> None:
        """Train a person's private state on by `steps` local steps on all that they had, and keep it for recommendations until
        these come from another round. Raises `DataError` for a stranger, or somebody without any event."""
        person = self._person(user)
        known = self._known(person)
        settings, seed, round = self.task.settings.local, self.task.settings.seed, self.task.round
        moved = refreshed(person.state, self.sent, known, settings, seed, round + 1, steps)
        Refreshed(self.device, self.task.run).save(user, self._moment, moved)

    @property
    def _moment(self) -> Moment:
        return Moment(round=self.task.round, tensors=self.task.tensors)

    def _routed(self, private: dict[str, Tensor], known: Histories) -> BackboneInput:
        """What people's scores are computed from, their views weighed as was learnt."""
        return cohort.routed(private, self.sent, known, self.task.settings.local)

    def _leaning(self, everything: BackboneInput, wanted: Preferences) -> BackboneInput:
        """The same with the views weighed as one person asks: an offset to a view's logit is a factor of its weight."""
        offsets = torch.tensor([wanted.leaning.get(name, 0.0) for name in self.task.views])
        if not offsets.any():
            return everything
        weights = torch.softmax(everything.routed.weights.log() + offsets, dim=1)
        return replace(everything, routed=replace(everything.routed, weights=weights))

    def _parts(self, everything: BackboneInput) -> Iterator[Tensor]:
        """Each view's part in the scores, [n_users, n_items]: what it adds alone to no view at all, its mean taken off."""
        routed, weights = everything.routed, everything.routed.weights
        backbone = make_backbone(self.task.settings.local.backbone)
        nothing = backbone.scores(replace(everything, routed=replace(routed, weights=0 * weights)))
        for one in torch.eye(len(routed.views)):
            part = backbone.scores(replace(everything, routed=replace(routed, weights=weights * one))) - nothing
            yield part - part.mean(1, keepdim=True)

    def _reasons(self, parts: list[Tensor], known: Histories, items: Tensor) -> tuple[Tensor, Tensor]:
        """For each of `items`: the view whose part of the score stands out most in the catalogue, and the nearest of the
        person's items in that view. Only single modalities can speak, where they are views: nobody knows what a gate is."""
        first = len(self.task.settings.views.operators) if self.task.settings.views.single else 0
        speaking = first + torch.cat(parts[first:])[:, items].argmax(0)
        return speaking, known.items[self._nearest(speaking, items, known)]

    def _nearest(self, views: Tensor, items: Tensor, known: Histories) -> Tensor:
        """Which of the person's items, by its place among them, is nearest to each of `items`, in the view beside it."""
        mine = self._unit[views[:, None], known.items]
        return (self._unit[views, items][:, None] * mine).sum(2).argmax(1)

    @cached_property
    def _unit(self) -> Tensor:
        """The views around their mean, each row of length 1."""
        views = self.sent[VIEWS]
        return torch.nn.functional.normalize(views - views.mean(1, keepdim=True), dim=2)


def _ahead(model: Published, note: RunNote) -> bool:
    """Whether a pulled model is later than what the device knows by itself of its run, or of one that goes on from that."""
    return note.run in {one.run for one in model.continues} or (
        model.run == note.run and model.round > note.shown.round
    )


def _n_items(tensors: Tensors) -> int | None:
    """How many items views are of, as they travelled: fewer than the catalogue has by now, where it has grown since.

    None where it cannot be told: views without rows of zero are of the catalogue as it is.
    """
    views = tensors.get(VIEWS)
    return None if views is None or VIEWS + LISTED in tensors else views.shape[-2]


def _shares(parts: Iterable[Tensor]) -> Tensor:
    """Each view's share of the spread of a person's scores, [n_users, n_views]; equal where no view tells items apart."""
    spreads = torch.stack([part.std(1) for part in parts], dim=1) + torch.finfo(torch.float32).tiny
    return spreads / spreads.sum(1, keepdim=True)


def _everything(split: Split) -> Histories:
    """All that people had, whatever it is held out for in training."""
    known = histories(split, split.validation)
    return histories(_with(split, known), split.test)


def _by_item(views: Tensor) -> Tensor:
    """The same views [n_views, n_items, dim], an item's rows side by side in memory: scoring then copies nothing."""
    return views.transpose(0, 1).contiguous().transpose(0, 1)


def _with(split: Split, known: Histories) -> Split:
    """The same split with `known` as its training items."""
    return replace(split, offsets=known.offsets.numpy(), train_items=known.items.numpy())
