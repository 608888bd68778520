"""TensorBoard: event files in the run's folder, `tensorboard --logdir RUNS`."""

import yaml
from torch.utils.tensorboard import SummaryWriter

from tessera.common.config.settings import Settings
from tessera.common.metrics.records import Record
from tessera.server.run_folder import RunFolder
from tessera.server.tracking.base import scalars

FOLDER = "tensorboard"


class TensorBoard:
    """Writes event files. A resumed run writes another one, which takes the place of the rounds it repeats."""

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        begins = folder.newest()
        self._writer = SummaryWriter(str(folder.path / FOLDER), purge_step=begins[0] + 1 if begins else None)
        content = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
        self._writer.add_text("settings", f"```\n{content}```")

    def line(self, line: Record) -> None:
        """Add the scalars of a line at its round."""
        round, found = scalars(line)
        for name, value in found.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    def end(self, state: str) -> None:
        """Close the files."""
        self._writer.close()
