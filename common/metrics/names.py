"""How figures are called, everywhere: "test/all/ndcg@50" is NDCG at 50 of all people's test items.

A name is [BASELINE/]PART/GROUP/METRIC[@K]:

BASELINE   whose figure it is where it is not the run's own: a trivial ranking, such as "popularity"
PART       which items are asked for (validation, test) or, of devices that answer questions, how the device stands (before or
           after a merge, local, global, chance, frozen)
GROUP      of whom or of what: all, warm and cold items, new-users, quartiles q1 to q4 of people by their events and f1 to
           f4 by how frequent their test item is; sampled, of all among drawn items instead of the whole catalogue; by-VIEW,
           of all with histories seen through one view; self, others and validation questions
METRIC     hr, ndcg, recall, mrr, map, coverage, accuracy, auc, rouge-l; users counts whom the others are
           means over; alignment, distance, uniformity and separability are no percentages, see
           `tessera.common.metrics.collapse`, nor is token-loss, in nats
K          how many items are looked at, where the metric depends on it
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from tessera.common.errors import DataError

USERS, HR, NDCG, ACCURACY, AUC, COVERAGE = "users", "hr", "ndcg", "accuracy", "auc", "coverage"
RECALL, MRR, MAP = "recall", "mrr", "map"
TOKEN_LOSS, ROUGE = "token-loss", "rouge-l"
LARGEST_LOSS = 100.0
"""More nats a token of a right answer no model can lose that is any good: what is above counts so much."""
"""Metrics; AUC is the mean of the accuracies of a run's evaluations (A_AUC, Koh et al. 2022)."""
VALIDATION, TEST, BEFORE, AFTER = "validation", "test", "before", "after"
"""Parts that runs are selected and reported on."""
ALL, WARM, COLD, NEW_USERS, UNTRAINED = "all", "warm", "cold", "new-users", "new-users-untrained"
"""Groups: targets that occur in training and those that do not, and new users, trained on their own device or not."""
SAMPLED = "sampled"
"""The group of all people where each target is ranked among drawn items alone."""
BY = "by-{}"
"""The group of people whose histories are seen through the view of a name alone."""
_WORD = r"[A-Za-z0-9_-]{1,40}"
_NAME = re.compile(rf"(?:({_WORD})/)?({_WORD})/({_WORD})/({_WORD})(?:@([1-9][0-9]{{0,8}}))?")
_PART = re.compile(_WORD)


@dataclass(frozen=True, order=True)
class MetricName:
    """What a figure is of; `str` writes it as it stands in files and messages, `parse` reads it.

    Raises `DataError` where a part is no word of letters, digits, "-" and "_", or k is no positive number.
    """

    part: str
    group: str
    metric: str
    k: int | None = None
    baseline: str = ""

    def __post_init__(self) -> None:
        words = [self.part, self.group, self.metric, *([self.baseline] if self.baseline else [])]
        if wrong := [word for word in words if not _PART.fullmatch(word)]:
            raise DataError(f"{wrong[0]!r} is no part of a metric's name: letters, digits, '-' and '_', 40 at most")
        if self.k is not None and self.k < 1:
            raise DataError(f"{self.metric}@{self.k}: K is a positive number")

    @classmethod
    def parse(cls, text: str) -> "MetricName":
        """Read a name. Raises `DataError` that says how names are written."""
        found = _NAME.fullmatch(text)
        if not found:
            raise DataError(
                f"{text!r} is no metric's name: write [BASELINE/]PART/GROUP/METRIC[@K], such as test/all/hr@50"
            )
        baseline, part, group, metric, k = found.groups()
        return cls(part, group, metric, int(k) if k else None, baseline or "")

    def __str__(self) -> str:
        """Write the name."""
        return "/".join([*([self.baseline] if self.baseline else []), self.part, self.group, self.measure])

    @property
    def measure(self) -> str:
        """The metric and its K, such as "ndcg@50"."""
        return self.metric if self.k is None else f"{self.metric}@{self.k}"

    @property
    def counts(self) -> bool:
        """Whether it is a number of users, and no percentage."""
        return self.metric == USERS

    @property
    def users(self) -> "MetricName":
        """The number of those that this is a mean over."""
        return replace(self, metric=USERS, k=None)

    def of(self, baseline: str) -> "MetricName":
        """The same figure of a baseline; of the run itself where `baseline` is empty."""
        return replace(self, baseline=baseline)

    def within(self, group: str) -> "MetricName":
        """The same figure of another group."""
        return replace(self, group=group)


def _name(value: object) -> MetricName:
    if isinstance(value, MetricName):
        return value
    try:
        return MetricName.parse(str(value))
    except DataError as error:
        raise ValueError(str(error)) from None


Named = Annotated[MetricName, BeforeValidator(_name), PlainSerializer(str, return_type=str)]
"""A metric's name in a typed model: written as text."""
Scores = dict[Named, float]
"""Figures by name: percentages, but for numbers of users."""


def names_in(columns: Iterable[str]) -> list[MetricName]:
    """The metrics among a table's columns, in their order."""
    return [MetricName.parse(column) for column in columns if "/" in column]


def written(scores: Scores) -> dict[str, float]:
    """Figures by their written names, as columns of tables have them."""
    return {str(name): value for name, value in scores.items()}
