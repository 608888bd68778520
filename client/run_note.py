"""What a device writes down of each run: how far it has come, and which moment of it to recommend by."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.common.config.device import DeviceSettings
from tessera.common.errors import DamagedError
from tessera.common.protocol.messages import Ancestor, Task
from tessera.common.utils.atomic_files import read_json


class Moment(BaseModel):
    """The private states that a round left, and the tensors that the server's side of the model was in then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    tensors: str
    """Their content hash."""


class RunNote(BaseModel):
    """What a device knows of a run: where it stands, and which moment to recommend by.

    A round is evaluated before anybody knows whether it is the best: `evaluated` is such a moment until the server's next
    message says which round is, and makes it the `selected` one or not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    views: tuple[str, ...]
    settings: DeviceSettings
    last: Moment
    evaluated: Moment | None = None
    selected: Moment | None = None
    continues: tuple[Ancestor, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "RunNote":
        """Read a note. Raises `DataError` that names the file."""
        content = read_json(path)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise DamagedError(f"{path} is no note of a run ({error.errors()[0]['msg']}): restore the file") from None

    @property
    def shown(self) -> Moment:
        """What recommendations are made from: the selected moment or, where the device knows of none, the last one."""
        return self.selected or self.last

    @property
    def kept(self) -> tuple[Moment, ...]:
        """Moments beside the last one that must stay."""
        return tuple(moment for moment in (self.evaluated, self.selected) if moment)

    def heard(self, task: Task) -> "RunNote":
        """The note once the device has heard from `task` which round is the best so far.

        It keeps its own where it was not there when that round was evaluated. What it has evaluated for this very message is
        still undecided. A run that was killed may go back to an earlier round: what the device evaluated from there on never
        happened.
        """
        end = task.round if task.kind in ("train", "evaluate") else task.round + 1
        past = {moment.round: moment for moment in self.kept if moment.round < end}
        own = past.get(self.selected.round) if self.selected else None
        undecided = self.evaluated if any(ask.kind == "evaluate" for ask in task.also) else None
        return self.model_copy(update={"selected": past.get(task.selected, own), "evaluated": undecided})

    def after(self, task: Task) -> "RunNote":
        """The note once the device has done `task`, of which it had heard."""
        now = Moment(round=task.round, tensors=task.tensors)
        changes = {"last": now, "views": task.views, "settings": task.settings, "continues": task.continues}
        return self.model_copy(update=changes | ({"evaluated": now} if task.kind == "evaluate" else {}))
