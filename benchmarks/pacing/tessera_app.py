"""Tessera's ServerApp, which trains a round, or asks for item statistics, whenever it is its turn."""

from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from tessera.benchmarks.pacing.pace import EMPTY, Paced
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.flower_internals.grid import look_sooner
from tessera.common.metrics.records import Record, RoundRecord, StatisticsRecord
from tessera.common.protocol.messages import COUNTS, Task
from tessera.common.utils.parent_death import tether
from tessera.server.app import serve
from tessera.server.dispatch import Dispatcher

server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out a run as `tessera.server.app` does, but go from round to round only when told to."""
    tether()
    look_sooner()
    settings = Settings.model_validate_json(str(context.run_config["settings"]))
    catalogue, run_dir = (Path(str(context.run_config[name])) for name in ("catalogue", "run-dir"))
    items = load_catalogue(catalogue)
    counts = {COUNTS: torch.Size([len(items)])}
    ask = Task("item_statistics", settings.name, 0, (), (), items.sha256, DeviceSettings.of(settings))
    paced, dispatcher = Paced(int(context.run_config["port"])), Dispatcher(grid, settings.federation)

    def report(record: Record) -> None:
        if isinstance(record, RoundRecord):
            paced.done()
        elif not isinstance(record, StatisticsRecord):
            raise RuntimeError(record.sentence())
        while paced.turn() == EMPTY:
            dispatcher.dispatch(ask, counts=counts)[ask.kind].require()
            paced.done()

    serve(grid, settings, catalogue, run_dir, resume=False, report=report)
