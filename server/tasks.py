"""Gives the nodes of a federation the tasks of one run, and asks again where the run cannot do without an answer."""

import itertools
import logging
from collections.abc import Collection, Mapping, Sequence

import torch

from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import Settings
from tessera.common.errors import RoundAbandoned, RunError, TesseraError
from tessera.common.protocol.messages import Ask, Kind, Task
from tessera.common.protocol.tensors import Tensors
from tessera.server.aggregate import Aggregate
from tessera.server.dispatch import Dispatcher
from tessera.server.live.pace import Pace
from tessera.server.model_selection import ModelSelection
from tessera.server.nodes.request import no_broadcast
from tessera.server.run_folder import RunFolder
from tessera.server.strategies.base import Strategy

log = logging.getLogger("tessera.server")


class Tasks:
    """The tasks of one run, with what the strategy has for each client; `round` is the current one."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        strategy: Strategy,
        settings: Settings,
        folder: RunFolder,
        selection: ModelSelection,
        pace: Pace,
    ) -> None:
        self.dispatcher, self.strategy, self.settings, self.pace = dispatcher, strategy, settings, pace
        self.device_settings = DeviceSettings.of(settings)
        self.folder, self.selection = folder, selection
        self.round = 0

    def send(
        self,
        kind: Kind,
        inputs: Tensors | None = None,
        counts: Mapping[str, torch.Size] | None = None,
        round: int | None = None,
    ) -> Aggregate:
        """Give nodes a task and add up what they return; `counts` are the shapes of vectors that may come back.

        It is asked again when too few answer, as long as the run's pace allows. Raises `RunError`, of these `RunStopped` where
        the run is to end meanwhile.
        """
        for times in itertools.count(1):
            answer = self._dispatch(Ask(kind, self.round if round is None else round), (), inputs, counts)[kind]
            if not isinstance(answer.failure, RoundAbandoned):
                return answer.require()
            self.pace.require()
            if not self.pace.goes_on(times):
                break
        raise RunError(str(answer.failure))

    def ask(
        self,
        kind: Kind,
        inputs: Tensors | None = None,
        counts: Mapping[str, torch.Size] | None = None,
        only: Collection[int] | None = None,
    ) -> Aggregate:
        """Give nodes, or `only` some, a task once and add up what they return, whoever answers."""
        return self._dispatch(Ask(kind, self.round), (), inputs, counts, only)[kind]

    def train(self, also: Sequence[Ask], inputs: Tensors) -> Mapping[Kind, Aggregate]:
        """Have nodes train for the current round, and before that do what is asked along; return the sums of each.

        What too few answered is not asked again here: its sum says so by its `failure`.
        """
        return self._dispatch(Ask("train", self.round), also, inputs, self.strategy.counts)

    def _dispatch(
        self,
        ask: Ask,
        also: Sequence[Ask],
        inputs: Tensors | None,
        counts: Mapping[str, torch.Size] | None,
        only: Collection[int] | None = None,
    ) -> Mapping[Kind, Aggregate]:
        settings = self.device_settings
        if self.strategy.clip:
            privacy = settings.privacy.model_copy(update={"clip": self.strategy.clip})
            settings = settings.model_copy(update={"privacy": privacy})
        task = Task(
            ask.kind,
            self.folder.run,
            ask.round,
            self.folder.durable(),
            self.strategy.views,
            self.strategy.catalogue,
            settings,
            selected=self.selection.round,
            also=tuple(also),
            components=self.strategy.components if ask.kind == "train" else (),
            continues=self.folder.continues,
        )
        broadcast = self.strategy.broadcast if ask.kind in ("train", "evaluate") else no_broadcast
        return self.dispatcher.dispatch(task, broadcast, inputs, self.strategy.check, counts, only)

    def tell_selection(self) -> None:
        """Let the clients know which round was selected, where that is news to them, so that they recommend by it.

        Every task says which round is best so far; only the last evaluation's outcome is in none. A client that knows of none
        recommends by the last round. Who is out of reach now goes on by the best round it has heard of.
        """
        shown = self.selection.told or self.round
        if self.selection.round == shown or self.settings.asks_questions:
            return
        try:
            self.send("select")
        except TesseraError as error:
            log.warning("not every client has heard that round %d was selected: %s", self.selection.round, error)
