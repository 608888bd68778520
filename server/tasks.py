"""Gives the nodes of a federation the tasks of one run, and asks again where the run cannot do without an answer."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

import torch

from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import Settings
from tessera.common.errors import RoundAbandoned, RunError, TesseraError
from tessera.common.protocol.messages import Kind, Task
from tessera.common.protocol.tensors import Tensors
from tessera.server.aggregate import Aggregate
from tessera.server.dispatch import Dispatcher, no_broadcast
from tessera.server.model_selection import ModelSelection
from tessera.server.run_folder import RunFolder
from tessera.server.strategies.base import Strategy

log = logging.getLogger("tessera.server")
TRIES = 3
"""Rounds, or the same task of a round, that may come to nothing one after the other before the run gives up."""


class Tasks:
    """The tasks of one run, each of the current `round`, with what the strategy has for each client."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        strategy: Strategy,
        settings: Settings,
        folder: RunFolder,
        selection: ModelSelection,
    ) -> None:
        self.dispatcher, self.strategy, self.settings = dispatcher, strategy, settings
        self.device_settings = DeviceSettings.of(settings)
        self.folder, self.selection = folder, selection
        self.round = 0

    def send(
        self, kind: Kind, inputs: Tensors | None = None, counts: Mapping[str, torch.Size] | None = None
    ) -> Aggregate:
        """Give nodes a task and add up what they return; `counts` are the shapes of vectors that may come back.

        Training that too few answered is abandoned by raising `RoundAbandoned`; anything else is asked again, and raises
        `RunError` when that is of no use.
        """
        broadcast = self.strategy.broadcast if kind in ("train", "evaluate") else no_broadcast
        task = Task(
            kind,
            self.folder.run,
            self.round,
            self.folder.durable(),
            self.strategy.views,
            self.strategy.catalogue,
            self.device_settings,
            selected=self.selection.round,
        )
        ask = partial(self.dispatcher.dispatch, task, broadcast, inputs, self.strategy.check, counts)
        if kind == "train":
            return ask()
        for _ in range(TRIES - 1):
            with suppress(RoundAbandoned):
                return ask()
        try:
            return ask()
        except RoundAbandoned as reason:
            raise RunError(str(reason)) from None

    def tell_selection(self) -> None:
        """Let the clients know which round was selected, where that is news to them, so that they recommend by it.

        Every task says which round is best so far; only the last evaluation's outcome is in none. Who is out of reach now
        goes on recommending by the best round it has heard of.
        """
        if self.selection.round == self.selection.told or self.settings.asks_questions:
            return
        try:
            self.send("select")
        except TesseraError as error:
            log.warning("not every client has heard that round %d was selected: %s", self.selection.round, error)
