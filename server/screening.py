"""What is taken of what nodes return, and what is dropped: each for a reason that is counted, and said with the node's number.

Nothing that is dropped changes anything: it is not added, and a round goes on with the rest.
"""

import math
from dataclasses import replace

from flwr.app import RecordDict

from common.codecs import decode, rotation
from common.compute import finite
from common.errors import TesseraError
from common.metrics import Sums
from common.protocol import Kind, Task, Tensors, Update, check_gradients, in_answer_to, unpack_update

FAILED, REFUSED, LATE, STRAY = "failed", "refused", "late", "stray"
MALFORMED, NONFINITE, CONSTANT, LARGE = "malformed", "nonfinite", "constant", "large"
REMEDIES = {NONFINITE: "lower the learning rates", CONSTANT: "nothing was learnt: check losses and rates"}
"""What ails most nodes is the run's own fault, and this is what to do."""


class Unfit(TesseraError):
    """An update that cannot be added to others': `kind` is what such are counted as, `sums` what it says of its users."""

    def __init__(self, kind: str, reason: str, sums: Sums | None = None) -> None:
        super().__init__(reason)
        self.kind, self.sums = kind, sums or Sums()


def taken(content: RecordDict, task: Task, sent: Tensors, largest: float) -> Update:
    """Read a node's update. Raises `Unfit` when it answers another task, is malformed, not finite or too large.

    `sent` is what the node had for the task; `largest` bounds the norm of its gradients by weight, 0 does not.
    """
    if dict(content.config_records.get("answers", {})) != dict(in_answer_to(task)):
        raise Unfit(STRAY, "it answers another task than this round's")
    try:
        update = _read(content, task, sent)
        _check_numbers(update, task.kind)
        if task.kind == "train":
            _check_size(update, largest)
            check_gradients(update, sent)
    except Unfit:
        raise
    except (KeyError, ValueError, TypeError, TesseraError) as error:
        raise Unfit(MALFORMED, str(error)) from None
    return update


def _read(content: RecordDict, task: Task, sent: Tensors) -> Update:
    update, wire, shapes = unpack_update(content), task.settings.wire, {name: tuple(sent[name].shape) for name in sent}
    gradients = decode(update.gradients, shapes, wire.gradients, rotation(task.settings.seed, task.round))
    return replace(update, gradients=gradients)


def degenerate(kind: Kind, sums: Sums) -> tuple[str, str] | None:
    """Whether users' losses or scores are useless, as (what it counts as, how many of how many); never whose."""
    if kind == "train" and sums[NONFINITE]:
        return NONFINITE, f"the loss of {int(sums[NONFINITE])} of {int(sums['users'])} users is not finite"
    if kind == "evaluate":
        for what, words in ((NONFINITE, "not finite"), (CONSTANT, "all the same")):
            if sums[what]:
                return what, f"the scores of {int(sums[what])} of {int(sums['evaluated'])} users are {words}"
    return None


def _check_numbers(update: Update, kind: Kind) -> None:
    if said := degenerate(kind, update.sums):
        raise Unfit(*said, update.sums)
    if update.weight < 0 or not all(map(math.isfinite, (update.weight, *update.sums.values.values()))):
        raise Unfit(NONFINITE, "its weight or a sum of its metrics is no proper number")


def _check_size(update: Update, largest: float) -> None:
    for name, gradient in update.gradients.items():
        if not finite(gradient):
            raise Unfit(NONFINITE, f"the gradient for {name!r} is not finite")
    norm = math.hypot(*(float(g.double().norm()) for g in update.gradients.values())) if largest else 0.0
    if norm > largest * update.weight:
        raise Unfit(LARGE, f"its gradients have a norm above {largest:g} for each unit of its weight")
