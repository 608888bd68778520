"""What the server asks of all clients beside training, as sums over their people: statistics, evaluations, a spectral start."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import HeldBack, RoundAbandoned, RunError
from tessera.common.metrics.names import TEST, VALIDATION
from tessera.common.metrics.ranking import MetricSums, percentages
from tessera.common.metrics.records import Ties
from tessera.common.privacy.between import LEAST
from tessera.common.protocol.messages import ASPECTS, BASIS, BLOCKS, CONTENT, COUNTS, Ask, FacetStep
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.server.aggregate import Aggregate
from tessera.server.dispatch import Dispatcher
from tessera.server.live.publication import publish
from tessera.server.model_selection import ModelSelection
from tessera.server.reporting import Reporter, ties
from tessera.server.strategies.base import Strategy
from tessera.server.tasks import Tasks
from tessera.server.views.facets import find_facets, numbered, whitened
from tessera.server.views.spectral_init import leading_vectors

log = logging.getLogger("tessera.server")
MUST_HOLD_OUT = ("given", "time", "random")
"""Splits that hold something out for validation wherever they fit the data."""
WITHHELD = (
    "{} with one person, or with few who came or went since it was told before, outside secure sums, keep to themselves how "
    "often items occur in training"
)
LATER = "people came during the run, and devices take the item counts of its beginning alone"
ENDLESS = "item counts change in a run without an end"
HELD = f"fewer than {LEAST} people came or went since devices last told item counts, whose difference would be theirs"
"""Why warm and cold targets are not told apart."""
NO_START = (
    "The spectral start would tell of these people by its difference from an earlier one: go on from a run (--continue), or "
    "set views.spectral_rounds to 0"
)
"""What to do where devices hold the products of a spectral start back."""
NO_SIDES = (
    "The search for sides of items would tell of these people by its difference from an earlier one: go on from a run "
    "(--continue), or set views.facets to 1"
)
"""What to do where devices hold its first step back."""


@dataclass(frozen=True)
class Statistics:
    """How many people and events there are, and how often each item occurs in training.

    `counts` holds a vector [n_items], or nothing where a device withholds its own: then warm and cold targets cannot be told
    apart.
    """

    answer: Aggregate
    counts: Tensors
    seconds: float
    held_back: bool = False
    """Whether devices under masks told no counts; the people are those that they registered with."""

    @property
    def people(self) -> float:
        """People who are there to train."""
        return self.answer.update.sums["users"]

    @property
    def validated(self) -> bool:
        """Whether anybody has an event for validation."""
        return self.answer.update.sums[VALIDATION] > 0

    @property
    def ties(self) -> Ties | None:
        """How many targets time does not decide on, as far as it is known."""
        return ties(self.answer.update.sums)


def item_statistics(tasks: Tasks, n_items: int) -> Statistics:
    """Wait for the clients, and ask all for their sums. Raises `RunError` where nobody is there to train.

    Where devices hold their counts back, since they told them before and few people came or went, the run does without.
    """
    tasks.pace.gather(tasks.dispatcher)
    began = time.monotonic()
    try:
        answer = tasks.send("item_statistics", counts={COUNTS: torch.Size([n_items])})
    except HeldBack as reason:
        log.warning("%s; the run goes on without item counts", reason)
        return _registered(tasks.dispatcher, began)
    if not answer.update.sums["users"]:
        raise RunError("no device has anybody to train")
    if (
        not answer.update.sums[VALIDATION]
        and tasks.settings.data.split in MUST_HOLD_OUT
        and not tasks.settings.asks_questions
    ):
        raise RunError(
            f"nobody has an event for validation by data.split {tasks.settings.data.split}, so no round can be selected: "
            "check the dates, shares or the data's own split, or set data.split to everything"
        )
    return _statistics(answer, began)


def recount(tasks: Tasks, n_items: int) -> Statistics | None:
    """Hear again whom the devices have, once one of them had more than it said, or came anew. What it then says it is held to.

    None where not as many devices as the run began with are there to say it.
    """
    began = time.monotonic()
    answer = tasks.ask("item_statistics", counts={COUNTS: torch.Size([n_items])})
    whole = not answer.failure and answer.nodes >= tasks.settings.federation.nodes
    return _statistics(answer, began) if whole else None


def _registered(dispatcher: Dispatcher, began: float) -> Statistics:
    """What is known of the people without a count: how many the devices of the secure sums registered with."""
    registered = dispatcher.secure.people() if dispatcher.secure else {}
    people = float(sum(registered.values()))
    sums = {"users": people, VALIDATION: people, TEST: people, "events": 0.0, "withheld": float(len(registered))}
    answer = Aggregate(answered=set(registered))
    answer.combiner.add(Update(sums=MetricSums(sums)))
    return Statistics(answer, {}, time.monotonic() - began, held_back=True)


def _statistics(answer: Aggregate, began: float) -> Statistics:
    counts = {} if answer.update.sums["withheld"] else {COUNTS: answer.update.counts[COUNTS]}
    return Statistics(answer, counts, time.monotonic() - began)


def first_views(tasks: Tasks, strategy: Strategy, statistics: Statistics, n_items: int, settings: Settings) -> None:
    """Start the views from what sums over people say, where asked for."""
    spectral_start(tasks, strategy, statistics, n_items, settings)
    facet_start(tasks, strategy, settings)


def spectral_start(tasks: Tasks, strategy: Strategy, statistics: Statistics, n_items: int, settings: Settings) -> None:
    """Start the item embeddings from singular vectors of the interactions, found in a few additive rounds, where asked for; a
    run that continues another one has been started.

    Items of fewer than `views.spectral_min_people` people are left out, as far as the counts are known: a row that one person
    alone is in is that person's history. Raises `RunError` where none is left.
    """
    views = settings.views
    if not views.spectral_rounds or tasks.round:
        return
    counts = statistics.counts.get(COUNTS, torch.full((n_items,), math.inf))
    known = torch.nonzero(counts >= views.spectral_min_people)[:, 0]
    if not len(known):
        raise RunError(f"no item has {views.spectral_min_people} people: lower views.spectral_min_people")

    def product(basis: Tensor) -> Tensor:
        asked = _among(known, basis, n_items)
        try:
            return tasks.send("power", {BASIS: asked}, {BASIS: asked.shape}).update.counts[BASIS][known]
        except HeldBack as reason:
            raise RunError(f"{reason}. {NO_START}") from None

    rank = min(views.dim, views.id_dim, len(known))
    vectors, values = leading_vectors(product, len(known), rank, views.spectral_rounds, settings.seed)
    strategy.initialise(_among(known, vectors, n_items), values)


def facet_start(tasks: Tasks, strategy: Strategy, settings: Settings) -> None:
    """Start the views from the features themselves, turned so that blocks of dimensions are sides that people go by, which are
    found in a few additive rounds, where asked for."""
    views = settings.views
    if not views.facets or tasks.round:
        return
    features = strategy.features().double().cpu()
    into, offset = whitened(features, views.dim)
    if views.facets > 1:
        blocks = numbered(views.dim, views.facets).float()

        def ask(step: FacetStep, table: Tensor) -> tuple[Tensor, float] | None:
            inputs = {ASPECTS + step: table.half(), BLOCKS: blocks}
            try:
                answer = tasks.send("aspects", inputs, {ASPECTS + step: torch.Size([views.dim, views.dim])}).update
            except HeldBack as reason:
                if step == "spread":
                    raise RunError(f"{reason}. {NO_SIDES}") from None
                log.warning("sides of items are looked for no further: %s", reason)
                return None
            return answer.counts[ASPECTS + step], answer.sums["users"]

        rotation = find_facets(ask, features @ into + offset, views.facets, views.facet_steps, settings.seed)
        into, offset = into @ rotation, offset @ rotation
    strategy.turn(into.float(), offset.float())


def _among(known: Tensor, rows: Tensor, n_items: int) -> Tensor:
    """Rows of the `known` items, among zeros for all others, [n_items, width]."""
    return rows.new_zeros(n_items, rows.shape[1]).index_copy_(0, known, rows)


class Evaluations:
    """What all clients rank for their people: every few rounds what they have by then, and at the end the baselines.

    Where all nodes train in each round, the evaluation of the round that is `due`, if any, goes along with the next training:
    they evaluate first, on the same tensors and from the same states, and one reply holds both. Elsewhere, and where nothing
    comes after it, it is asked apart. The figures are the same, since nothing moves in between.
    """

    def __init__(
        self,
        tasks: Tasks,
        selection: ModelSelection,
        reporter: Reporter,
        statistics: Statistics,
        catalogue: Catalogue,
        save: Callable[[int], None],
        due: int,
    ) -> None:
        self.tasks, self.selection, self.reporter = tasks, selection, reporter
        self.statistics, self.catalogue, self.save = statistics, catalogue, save
        self.counts, self._told = statistics.counts, False
        self.goes_along = not tasks.settings.federation.clients_per_round
        self.due = due
        tasks.dispatcher.begun = True
        reporter.uncounted = _uncounted(statistics, tasks)

    def schedule(self, round: int) -> None:
        """Have the clients evaluate a round before anything moves: with the next training or, where it cannot be, now."""
        self.finish()  # where rounds were abandoned since, the last one too
        self.due = round
        if not self.goes_along:
            self.finish()

    def train(self) -> Aggregate:
        """Have the clients train, and take in what was due; return what the training brought.

        Raises `RunError` where what was due cannot be had. What too few answered remains due where training is abandoned too.
        """
        if self.tasks.dispatcher.outdated and (found := recount(self.tasks, len(self.catalogue))):
            self._people_have_come(found)
        if not self.goes_along:
            self.finish()
        also = [Ask("evaluate", self.due)] if self.due else []
        self.reporter.account.rounds += 1
        answers = self.tasks.train(also, self._inputs())
        for ask in also:
            if isinstance(failure := answers[ask.kind].failure, HeldBack):
                self._leave_out(failure)
            elif not isinstance(failure, RoundAbandoned):
                self._take(answers[ask.kind].require(), along=True)
        if not answers["train"].failure:
            self.finish()  # before anything moves
        return answers["train"]

    def finish(self) -> None:
        """Ask now for what is due."""
        if self.due:
            try:
                answer = self.tasks.send("evaluate", self._inputs(), round=self.due)
            except HeldBack as reason:
                return self._leave_out(reason)
            self._take(answer, along=False)

    def stale(self, round: int) -> bool:
        """Whether nothing has got better for long by `round`, as far as that is known."""
        return not self.due and self.selection.stale(round)

    def end(self) -> None:
        """Ask for what is still due, write a last checkpoint, and have the trivial rankings evaluated on the people of the
        selected round: on the nodes that evaluated it, as far as they are there.

        They are asked for once in a run: under secure sums the difference of two answers, of nearly the same people, would be
        the figures of a few.
        """
        self.finish()
        self.save(self.tasks.round)
        if not self.tasks.settings.evaluation.baselines:
            return
        settings, nodes = self.tasks.settings, self.selection.nodes
        if len(self.tasks.dispatcher.online(nodes)) < settings.federation.min_nodes:
            nodes = None
        inputs = {} if settings.asks_questions else {**self.counts, **content_inputs(self.catalogue)}
        self.reporter.trivial(self.tasks.ask("baselines", inputs, only=nodes), self.selection)

    def _leave_out(self, reason: HeldBack) -> None:
        """Do without the evaluation that is due: the same views were evaluated before, of nearly the same people."""
        log.warning("round %d is not evaluated: %s", self.due, reason)
        self.due = 0

    def _take(self, answer: Aggregate, along: bool) -> None:
        """Report what the clients found, and decide whether their round is the best so far: that one has a checkpoint."""
        round, self.due = self.due, 0
        sums = answer.update.sums
        scores = percentages(sums)
        self.selection.consider(round, scores, sums["evaluated"], answer.answered)
        self.reporter.evaluation(round, answer, scores, self.selection.people, along)
        if self.selection.round != round:
            return
        if self.tasks.folder.published:
            publish(self.tasks.folder.published, self.tasks, self.catalogue, self.statistics.counts, round)
        if not self.tasks.folder.holds(round):
            self.save(round)

    def _people_have_come(self, found: Statistics) -> None:
        """Go on with what devices say anew. Those that were told item counts before take no others."""
        self.statistics, self.selection.people, self.selection.validated = found, found.people, found.validated
        self.counts = {} if self._told else found.counts
        self.reporter.uncounted = _uncounted(found, self.tasks) or (LATER if self._told else None)

    def _inputs(self) -> Tensors:
        """What clients need for what is due: item counts, which tell warm targets from cold ones.

        Devices take those that they hear of first in a run and no others, which would tell targets apart: once people have
        come, evaluations do without.
        """
        if not self.due or self.tasks.settings.asks_questions or not self.tasks.pace.tells_counts:
            return {}
        self._told = self._told or bool(self.counts)
        return dict(self.counts)


def _uncounted(statistics: Statistics, tasks: Tasks) -> str | None:
    """Why warm targets are not told from cold ones, if they are not: nobody knows how often items occur in training."""
    if tasks.settings.asks_questions:
        return None
    if statistics.held_back:
        return HELD
    if alone := statistics.answer.update.sums["withheld"]:
        return WITHHELD.format(f"{alone:.0f} devices" if alone > 1 else "a device")
    return None if tasks.pace.tells_counts else ENDLESS


def content_inputs(catalogue: Catalogue) -> dict[str, Tensor]:
    """Unit feature rows by modality, for the content baselines; missing items are zero and so rank as average."""
    tables = {}
    for name, features in catalogue.features.items():
        table = torch.from_numpy(features.standardised())
        table[~torch.from_numpy(features.present)] = 0
        tables[CONTENT + name] = torch.nn.functional.normalize(table, dim=1).half()
    return tables
