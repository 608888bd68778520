"""The lines of a run's metrics.jsonl as types: what is written there, and what reading it gives.

Each line is one JSON object that says of which `kind` it is and of which `version` of this schema. docs/metrics.md describes
them field by field, and a test holds the two together. Percentages are of 100, times seconds, sizes bytes.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from tessera.common.errors import DataError
from tessera.common.metrics.names import Scores
from tessera.common.utils.atomic_files import write_bytes

FILE = "metrics.jsonl"
Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Line(BaseModel):
    """Frozen, strict about names; what is None is not written."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: Literal[1, 2, 3] = 3
    """The version of this schema; 1 had no `ties`, 2 neither bytes of one person alone nor how many people figures are of."""

    def to_json(self) -> dict[str, Any]:
        """The line as an object of JSON."""
        return self.model_dump(mode="json", exclude_none=True)

    def sentence(self) -> str:
        """What happened, in words for a log; figures are in the file of metrics."""
        raise NotImplementedError


class _Faults(_Line):
    dropped: dict[str, int] | None = None
    """How many answers were not taken, by the kind of their fault; left out where there were none."""
    troubles: tuple[str, ...] | None = None
    """What was wrong with them, node by node."""


class _Traffic(_Line):
    bytes_down_per_user: Figure = 0.0
    """Bytes of tensors from the server, for each user of the run."""
    bytes_down_per_node: Figure = 0.0
    """The same for each node that answered."""
    bytes_up_per_user: Figure = 0.0
    """Bytes of tensors to the server, for each user of the run."""
    bytes_up_per_node: Figure = 0.0
    """The same for each node that answered."""


class Ties(BaseModel):
    """How the events of a person that have the same time are ordered, and how many targets that rule decided on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    order: str
    """The rule."""
    validation: Figure
    """Share of the people with a validation item for whom the rule decided on it, in %."""
    test: Figure
    """The same of the test item."""


class Compared(BaseModel):
    """Whom the figures of a run and of the trivial rankings beside it are of."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    people: Figure
    """People who were evaluated in the selected round."""
    nodes: int
    """Nodes that they are on."""
    baselines_people: Figure
    """People of whom the baselines are; 0 where nobody answered to them."""
    baselines_nodes: int
    """Nodes that they are on."""
    same: bool
    """Whether these are the same nodes, and as many people with targets of each kind. Where a run was resumed since, and its
    nodes may have other numbers, only how many are compared."""


class StatisticsRecord(_Faults):
    """What the federation is before it trains: its first line."""

    kind: Literal["item_statistics"] = "item_statistics"
    round: int = 0
    """0: before the first round."""
    users: Figure
    """People who are there to train; of devices that answer questions, devices."""
    events: Figure
    """Their events in training, or their questions."""
    withheld: Figure
    """Devices that keep to themselves how often each item occurs, because they have one person."""
    validation: Figure | None = None
    """People with a validation item."""
    test: Figure | None = None
    """People with a test item."""
    ties: Ties | None = None
    """Targets that time alone does not decide on; left out where a device with one person keeps it to itself."""
    nodes: int
    """Nodes that answered."""
    groups: int | None = None
    """Groups of nodes whose sums are all that the server can read; left out where it reads each node's answers."""
    seconds: Figure
    """Time it took."""

    def sentence(self) -> str:
        """Who is there."""
        return f"{self.users:.0f} users with {self.events:.0f} training events on {self.nodes} nodes"


class BaselinesRecord(_Faults):
    """What needs no training: the trivial rankings, asked of the nodes that evaluated the selected round. Comes at the end."""

    kind: Literal["baselines"] = "baselines"
    round: int = 0
    """0: of no round."""
    nodes: int
    """Nodes that answered."""
    people: Figure | None = None
    """People on them; left out by version 2."""
    scores: Scores
    """Figures of the trivial rankings, their names in front."""

    def sentence(self) -> str:
        """Who was evaluated."""
        return f"{self.nodes} nodes evaluated the baselines"


class _OfRound(_Traffic, _Faults):
    round: int
    """The round."""
    nodes: int
    """Nodes that answered."""


class RoundRecord(_OfRound):
    """A round of training. The evaluation of the round before, where that was asked along with it, is in its time."""

    kind: Literal["round"] = "round"
    seconds: Figure
    """Time since the round before, or since the evaluation that was asked apart."""
    loss: Figure | None = None
    """Mean training loss of the users who took part; left out with distributed noise, which is not on it."""
    users: int
    """Users who took part; with distributed noise, which hides who, those who were expected to."""
    epsilon: Figure | None = None
    """What all training so far tells of a person (`tessera.common.privacy`); left out where it has no noise."""

    def sentence(self) -> str:
        """Who took part, the loss, and epsilon."""
        loss = "" if self.loss is None else f", mean loss {self.loss:.4f}"
        told = f"round {self.round}: {self.users} users on {self.nodes} nodes trained{loss}; {self.seconds:.2f} s"
        return f"{told}; epsilon {told_epsilon(self.epsilon)}"


class EvaluationRecord(_OfRound):
    """What a round reached, written when it is known: with the reply of the next round's training, or asked apart."""

    kind: Literal["evaluation"] = "evaluation"
    seconds: Figure
    """Time it took; 0 where it came along with the next round's training."""
    people: Figure | None = None
    """People who were evaluated, with targets or without; left out by version 2."""
    scores: Scores
    """Figures by name."""

    def sentence(self) -> str:
        """Who was evaluated."""
        return f"round {self.round}: evaluated on {self.nodes} nodes"


class AbandonedRecord(_Line):
    """A round that brought nothing; the run goes on with the next."""

    kind: Literal["abandoned"] = "abandoned"
    round: int
    """The round."""
    reason: str
    """Why."""
    dropped: dict[str, int] | None = None
    """How many answers were not taken, by the kind of their fault; left out where there were none."""

    def sentence(self) -> str:
        """Why nothing was learnt."""
        return f"round {self.round} was abandoned: {self.reason}"


class ResultRecord(_Traffic):
    """What a completed run ended with: its last line."""

    kind: Literal["result"] = "result"
    name: str
    """The run's name."""
    seed: int
    """Its seed."""
    rounds: int
    """The last round."""
    first: int | None = None
    """The round of another run that this one went on from; left out where it began by itself."""
    selected_round: int | None = None
    """The round that validation selected; left out where none was evaluated."""
    scores: Scores
    """Figures of that round; of devices that answer questions, also the mean accuracy of all evaluations (auc)."""
    baselines: Scores
    """Figures of the trivial rankings, their names in front."""
    compared: Compared | None = None
    """Whether the baselines are of the same people; left out where none were asked for, and by version 2."""
    uncounted: str | None = None
    """Why warm and cold targets are not told apart, where they are not."""
    ties: Ties | None = None
    """Targets that time alone does not decide on, as the first line has them."""
    precision: str | None = None
    """Of training's matrix products: float32 or bfloat16; `auto (...)` with what it means where the server runs, since each
    device measures for itself. Left out where devices answer questions."""
    bytes_down_alone: Figure | None = None
    """Bytes of tensors that a device with one person alone gets in a round of training; left out where it is not known."""
    bytes_up_alone: Figure | None = None
    """Bytes of tensors that it sends in such a round, the mean over some of the run's people."""
    seconds: Figure
    """Time of all rounds together."""
    epsilon: Figure | None = None
    """What all training tells of a person; left out where it has no noise. Evaluations and counts of items have none."""
    delta: Figure | None = None
    """The delta of that."""
    strategy: dict[str, JsonValue] = {}
    """What the strategy adds, such as who learns from whom (relevance)."""

    @property
    def trained(self) -> int:
        """How many rounds the run itself trained."""
        return self.rounds - (self.first or 0)

    def sentence(self) -> str:
        """Where the run ended, and which round was selected."""
        selected = f"; round {self.selected_round} was selected" if self.selected_round else ""
        told = f"the run ended after {self.trained} rounds and {self.seconds:.1f} s{selected}"
        return f"{told}; epsilon {told_epsilon(self.epsilon)}"


def told_epsilon(epsilon: float | None) -> str:
    """Epsilon in words: "none" where training is exact, in sums or not."""
    return "none" if epsilon is None else f"{epsilon:.3g}"


Record = StatisticsRecord | BaselinesRecord | RoundRecord | EvaluationRecord | AbandonedRecord | ResultRecord
_READER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def write_line(record: Record) -> str:
    """One line of the file, with its end."""
    return json.dumps(record.to_json()) + "\n"


def read_line(line: str | bytes, source: str) -> Record:
    """Read one line that came from `source`. Raises `DataError` that names it and says what is wrong."""
    try:
        return _READER.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        told = f"{where}: {first['msg']}" if where else first["msg"]
        raise DataError(
            f"{source}, is damaged or of another version of Tessera ({told}): remove the line, or restore the file"
        ) from None


def read_records(run: Path) -> list[Record]:
    """Read the metrics of the run in the folder `run`; a last line cut short by a kill is left out.

    Raises `DataError` that names a damaged line.
    """
    file = run / FILE
    if not file.exists():
        return []
    lines = enumerate(file.read_bytes().splitlines(keepends=True), 1)
    return [read_line(line, f"{file}, line {number}") for number, line in lines if line.endswith(b"\n")]


def read_rounds(run: Path) -> list[RoundRecord]:
    """The rounds of a run that brought something, one after the other."""
    return [line for line in read_records(run) if isinstance(line, RoundRecord)]


def evaluations(run: Path) -> list[Scores]:
    """The scores of a run's evaluations, one after the other."""
    return [line.scores for line in read_records(run) if isinstance(line, EvaluationRecord)]


def amend_result(run: Path, **more: Any) -> ResultRecord:
    """Add fields to the line that a completed run ended with, and return it. Raises `DataError` where it has no result."""
    amended = read_result(run).model_copy(update=more)
    records = read_records(run)
    last = max(place for place, line in enumerate(records) if isinstance(line, ResultRecord))
    lines = [*records[:last], amended, *records[last + 1 :]]
    write_bytes(run / FILE, "".join(map(write_line, lines)).encode())
    return amended


def read_result(run: Path) -> ResultRecord:
    """What the completed run in the folder `run` ended with. Raises `DataError` where it has no result."""
    found = [line for line in read_records(run) if isinstance(line, ResultRecord)]
    if not found:
        raise DataError(f"{run / FILE} holds no result: the run did not come to its end")
    return found[-1]
