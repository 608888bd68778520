"""Lists the figures that an answer to each kind of task may hold: no others are taken, and under masks all are sent."""

from collections.abc import Collection, Mapping, Sequence

from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import EvaluationSettings
from tessera.common.metrics.collapse import GEOMETRY
from tessera.common.metrics.names import (
    ALL,
    BY,
    COLD,
    NEW_USERS,
    SAMPLED,
    TEST,
    UNTRAINED,
    USERS,
    VALIDATION,
    WARM,
    MetricName,
)
from tessera.common.protocol.messages import CONTENT, COUNTS, Kind

LOSS, NONFINITE, CONSTANT, SCALED = "loss", "nonfinite", "constant", "scaled"
TIED = {VALIDATION: "tied-validation", TEST: "tied-test"}
"""How many people have a target of a part that another of their events has the same time as."""
FIGURES: Mapping[Kind, frozenset[str]] = {
    "item_statistics": frozenset({"users", "events", "withheld", VALIDATION, TEST, *TIED.values()}),
    "power": frozenset(),
    "aspects": frozenset({"users"}),
    "train": frozenset({"users", LOSS, NONFINITE, SCALED}),
    "evaluate": frozenset({"evaluated", CONSTANT, NONFINITE}),
    "baselines": frozenset({"evaluated", CONSTANT, NONFINITE}),
    "select": frozenset(),
}
"""The plain sums of each kind of task."""
SCORED: frozenset[Kind] = frozenset({"evaluate", "baselines"})
"""Tasks that are answered by sums of metrics too."""


def figure_names(
    kind: Kind, settings: DeviceSettings, inputs: Collection[str], views: Sequence[str] = ()
) -> tuple[str, ...]:
    """Every figure that an answer may hold to a task with these inputs and `views`, in the order in which they are masked.

    Whether there are warm and cold targets, and what baselines there are, depends on what the server sent about the items.
    """
    names = set(FIGURES[kind])
    if kind in SCORED:
        scores = _scores(kind, settings, inputs)
        names |= {str(score.of(baseline)) for score in scores for baseline in _baselines(kind, inputs)}
        if kind == "evaluate" and settings.evaluation.collapse:
            names |= set(map(str, collapse_names(settings.evaluation, views)))
    return tuple(sorted(names))


def _scores(kind: Kind, settings: DeviceSettings, inputs: Collection[str]) -> list[MetricName]:
    groups = [ALL, *([WARM, COLD] if COUNTS in inputs else [])]
    if settings.evaluation.sampled_candidates:
        groups.append(SAMPLED)
    if settings.data.cold_users:
        groups += [NEW_USERS, UNTRAINED]
    return _ranked(settings.evaluation, groups)


def collapse_names(settings: EvaluationSettings, views: Sequence[str]) -> list[MetricName]:
    """What an evaluation says of each view besides: see `tessera.client.contrast.collapse`."""
    own = [BY.format(view) for view in views]
    geometry = [
        MetricName(part, group, one) for part in (VALIDATION, TEST) for group in (ALL, *own) for one in GEOMETRY
    ]
    return _ranked(settings, own) + geometry


def _ranked(settings: EvaluationSettings, groups: Sequence[str]) -> list[MetricName]:
    parts = [(part, group) for part in (VALIDATION, TEST) for group in groups]
    ranked = [(metric, k) for metric in settings.metrics for k in settings.ks]
    return [MetricName(*part, USERS) for part in parts] + [MetricName(*part, *one) for part in parts for one in ranked]


def _baselines(kind: Kind, inputs: Collection[str]) -> list[str]:
    """Whose scores they are: "" is the run's own. See `tessera.client.evaluation.baselines`."""
    if kind != "baselines":
        return [""]
    contents = [f"content-{name.removeprefix(CONTENT)}" for name in inputs if name.startswith(CONTENT)]
    popularity = ["popularity", "inverse-popularity"] if COUNTS in inputs else []
    return [
        "random",
        "item-id",
        "item-id-descending",
        *popularity,
        *contents,
        *(["content-all"] if len(contents) > 1 else []),
    ]
