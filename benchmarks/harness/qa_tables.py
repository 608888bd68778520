"""Says which figures the tables of a bench show where devices answer questions."""

from collections.abc import Mapping, Sequence

import polars as pl

from tessera.benchmarks.harness.fast_adaptation import UNSEEN
from tessera.common.metrics.names import (
    ACCURACY,
    AFTER,
    AUC,
    BEFORE,
    ROUGE,
    TOKEN_LOSS,
    VALIDATION,
    MetricName,
    names_in,
)
from tessera.common.towers.transformer import SIZES

OWN = "self-"
"""Groups of a device's own tests: self-tiny is of devices of class tiny."""
SETS = {"Self": "self", "Others": "others"}
"""A device's own tests, and a part of all other devices'."""
VARIANTS = {"before": "before", "after": "after", "local alone": "local", "global alone": "global"}
QUALITY = (
    "Right answers in %, each device as it stands at the end of its round: mean and [smallest, largest] over seeds"
)
WRITING = "Answers in words: nats a token of the right one, and ROUGE-L in % of what is written, after the last merge"
MERGE = "Around the last merge: before and after what others learnt comes in, and either branch alone"
GROUPS = "Self by device class and by family of tasks"
ADAPTATION = "Unseen tasks: right answers after so many steps from the average of what all devices sent"
COST = "Cost, means over seeds"
Columns = tuple[str, Mapping[str, str], Sequence[str]]


def answered(table: pl.DataFrame) -> list[Columns]:
    """Titles, columns and remarks of the tables; none where devices do not answer questions."""
    if str(MetricName(BEFORE, "self", ACCURACY)) not in table.columns:
        return []
    costs = {f"kB {way} a device and round": f"bytes_{way}_per_node" for way in ("down", "up")}
    return [
        (QUALITY, _quality(), ("seeds", "chosen")),
        (MERGE, _around_the_merge(), ()),
        (WRITING, _writing(), ()),
        (GROUPS, _by_group(table), ()),
        (ADAPTATION, _adaptation(table), ()),
        (COST, costs | {"seconds in all": "seconds"}, ()),
    ]


def _quality() -> dict[str, str]:
    columns: dict[str, str] = {}
    for shown, name in SETS.items():
        columns |= {f"{shown} A_last": str(MetricName(BEFORE, name, ACCURACY))}
        columns |= {f"{shown} A_AUC": str(MetricName(BEFORE, name, AUC))}
    return columns | {"Self on validation": str(MetricName(BEFORE, VALIDATION, ACCURACY))}


def _around_the_merge() -> dict[str, str]:
    return {
        f"{shown}, {how}": str(MetricName(variant, name, ACCURACY))
        for shown, name in SETS.items()
        for how, variant in VARIANTS.items()
    }


def _writing() -> dict[str, str]:
    measures = {"token loss": (BEFORE, TOKEN_LOSS), "ROUGE-L": (AFTER, ROUGE)}
    return {
        f"{shown} {measure}": str(MetricName(part, f"{name}-written", metric))
        for shown, name in SETS.items()
        for measure, (part, metric) in measures.items()
    }


def _by_group(table: pl.DataFrame) -> dict[str, str]:
    own = [name for name in names_in(table.columns) if (name.part, name.metric) == (BEFORE, ACCURACY)]
    shown = {name.group.removeprefix(OWN): str(name) for name in own if name.group.startswith(OWN)}
    return dict(sorted(shown.items(), key=lambda pair: (pair[0] not in SIZES, pair[0])))


def _adaptation(table: pl.DataFrame) -> dict[str, str]:
    unseen = [name for name in names_in(table.columns) if name.part == UNSEEN]
    return {f"{name.group.removeprefix('after-')} steps": str(name) for name in unseen}
