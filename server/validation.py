"""Decides which updates of nodes are taken, and which are dropped and why.

Nothing that is dropped changes anything: it is not added, and a round goes on with the rest. Nodes are not trusted: whatever
they send is taken, or raises `RejectedUpdate` with a reason that is counted and said with the node's number.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from flwr.app import RecordDict

from tessera.common.errors import DataError, NotFiniteError, ProtocolError
from tessera.common.metrics.names import MetricName
from tessera.common.metrics.ranking import MetricSums
from tessera.common.privacy.quantile import with_bit
from tessera.common.protocol.codecs import decode, rotation, rows
from tessera.common.protocol.figures import CONSTANT, FIGURES, LOSS, NONFINITE, SCORED
from tessera.common.protocol.masked.masking import MASKED
from tessera.common.protocol.messages import Kind, Masking, Task, check_protocol, in_answer_to
from tessera.common.protocol.parts import GRADIENTS_PART
from tessera.common.protocol.projection import SKETCH, Projection
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import ANSWERS, Update, check_gradients, unpack_update
from tessera.common.registry.registry import resolve
from tessera.server.robust.claims import Claim, ExaggeratedError, check_claim

FAILED, REFUSED, LATE, STRAY = "failed", "refused", "late", "stray"
MALFORMED, LARGE, UNREADABLE = "malformed", "large", "unreadable"
EXAGGERATED, OUTDATED = "exaggerated", "outdated"
REMEDIES = {NONFINITE: "lower the learning rates", CONSTANT: "nothing was learnt: check losses and rates"}
"""What ails most nodes is the run's own fault, and this is what to do."""


class RejectedUpdate(Exception):
    """An update that cannot be added to others': `kind` is what such are counted as, `sums` what it says of its users."""

    def __init__(self, kind: str, reason: str, sums: MetricSums | None = None) -> None:
        super().__init__(reason)
        self.kind, self.sums = kind, sums or MetricSums()


@dataclass(frozen=True)
class Expected:
    """What an update must fit: the tensors its node had, the shapes of counts that may come, a bound of its gradients' norm by
    weight, where 0 is none, what went along with the task, and what the node has said of its people."""

    task: Task
    sent: Tensors
    counts: Mapping[str, torch.Size]
    largest: float
    inputs: Tensors = field(default_factory=dict)
    claim: Claim | None = None

    @property
    def learnt(self) -> Tensors:
        """What gradients come back for: what was sent, or its outline where they are projected, and what finds a clip."""
        projection = Projection.of(self.task)
        return with_bit(projection.outline(self.sent) if projection else self.sent, self.task.settings.privacy)


def validate_update(content: RecordDict, wanted: Expected) -> Update:
    """Read a node's update. Raises `RejectedUpdate` when it answers another task, is malformed, not finite or too large.

    Of one that is masked only the envelope can be looked at, and what travels beside it: see `check_update` for the rest.
    """
    with _rejecting():
        said, task = dict(content.config_records.get(ANSWERS, {})), wanted.task
        check_protocol(said, "it", "this server")
        if any(said.get(name) != value for name, value in in_answer_to(task).items()):
            raise RejectedUpdate(STRAY, "it answers another task than this round's")
        update = _read(content, task, wanted.sent)
        if task.masking is None:
            check_update(update, wanted)
        else:
            _check_masked(update, task.masking)
    return update


def check_update(update: Update, wanted: Expected) -> None:
    """Look at an update, of a node or of a group of them. Raises `RejectedUpdate` as `validate_update` does."""
    with _rejecting():
        _check_sums(update.sums, wanted.task.kind)
        _check_counts(update.counts, wanted.counts)
        for part in update.held():
            if part is not GRADIENTS_PART:  # whose shapes come first
                part.check(update[part])
        if any(value < 0 for name, value in update.sums.values.items() if name != LOSS):
            raise RejectedUpdate(MALFORMED, "a sum of its metrics is negative")
        if wanted.task.kind == "train":
            check_gradients(update, wanted.learnt)
            _check_size(update, wanted.largest)
        elif update.gradients:
            raise RejectedUpdate(MALFORMED, f"gradients, which nobody wants of {wanted.task.kind}")
        check_claim(update, wanted.task, wanted.inputs, wanted.claim)


@contextmanager
def _rejecting() -> Iterator[None]:
    """Within it, whatever a node has made up is a reason to reject it."""
    try:
        yield
    except RejectedUpdate:
        raise
    except ProtocolError as error:
        raise RejectedUpdate(REFUSED, str(error)) from None
    except ExaggeratedError as error:
        raise RejectedUpdate(EXAGGERATED, str(error)) from None
    except NotFiniteError as error:
        raise RejectedUpdate(NONFINITE, str(error)) from None
    except Exception as error:
        raise RejectedUpdate(MALFORMED, str(error) or type(error).__name__) from None


def _check_masked(update: Update, masking: Masking) -> None:
    """It must be masked, with nothing of it beside, for this very ask; the strategy's own parts must be proper."""
    if len(update[MASKED]) != 1 or update[MASKED][0].ask != masking.asks[0]:
        raise RejectedUpdate(MALFORMED, "it is not masked, or for another ask")
    if update.gradients or update.counts or update.weight or update.sums.values:
        raise RejectedUpdate(MALFORMED, "something of it is masked, and something is not")
    for part in update.parts:
        part.check(update[part])


def degenerate(kind: Kind, sums: MetricSums) -> tuple[str, str] | None:
    """Whether users' losses or scores are useless, as (what it counts as, how many of how many); never whose."""
    if kind == "train" and sums[NONFINITE]:
        return NONFINITE, f"the loss of {sums[NONFINITE]:.0f} of {sums['users']:.0f} users is not finite"
    if kind == "evaluate":
        for what, words in ((NONFINITE, "not finite"), (CONSTANT, "all the same")):
            if sums[what]:
                return what, f"the scores of {sums[what]:.0f} of {sums['evaluated']:.0f} users are {words}"
    return None


def _read(content: RecordDict, task: Task, sent: Tensors) -> Update:
    """Read a reply. Gradients for `sent` come projected, or from a device of an older version as they are."""
    projection = Projection.of(task)
    parts = [*map(resolve, task.settings.strategy_spec.parts), *([MASKED] if task.masking else [])]
    update, wire = unpack_update(content, parts), task.settings.wire
    older = SKETCH not in update.gradients and rows(update.gradients) == len(task.views)
    late = projection if older else None  # projected late: here
    expected = projection.outline(sent) if projection and not late else sent
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    gradients = decode(update.gradients, shapes, wire.gradients, rotation(task.settings.seed, task.round))
    return replace(update, gradients=late.project(gradients) if late else gradients)


def _check_sums(sums: MetricSums, kind: Kind) -> None:
    """Whether the sums are those of the task, and proper numbers."""
    for name in sums.values.keys() - FIGURES[kind]:
        if kind not in SCORED or not _is_score(name, kind):
            raise RejectedUpdate(MALFORMED, f"a sum called {name!r}")
    if said := degenerate(kind, sums):
        raise RejectedUpdate(*said, sums)


def _is_score(name: str, kind: Kind) -> bool:
    """Whether it is a metric's name; baselines' have their own in front, and no others."""
    try:
        return not MetricName.parse(name).baseline or kind == "baselines"
    except DataError:
        return False


def _check_counts(counts: Tensors, wanted: Mapping[str, torch.Size]) -> None:
    for name, value in counts.items():
        if value.shape != wanted.get(name) or value.dtype != torch.float32:
            raise RejectedUpdate(MALFORMED, f"{name!r} of shape {tuple(value.shape)} and type {value.dtype}")


def _check_size(update: Update, largest: float) -> None:
    norm = math.hypot(*(float(g.double().norm()) for g in update.gradients.values())) if largest else 0.0
    if norm > largest * update.weight:
        raise RejectedUpdate(LARGE, f"its gradients have a norm above {largest:g} for each unit of its weight")
