"""Columns of the tables of a bench whose devices answer questions."""

from collections.abc import Mapping, Sequence

import polars as pl

from tessera.common.towers.transformer import SIZES

LAST, AREA = "accuracy", "auc"
SETS = {"Self": "self", "Others": "others"}
"""A device's own tests, and a part of all other devices'."""
VARIANTS = {"before": "before", "after": "after", "local alone": "local", "global alone": "global"}
QUALITY = (
    "Right answers in %, each device as it stands at the end of its round: mean and [smallest, largest] over seeds"
)
MERGE = "Around the last merge: before and after what others learnt comes in, and either branch alone"
GROUPS = "Self by device class and by family of tasks"
UNSEEN = "Unseen tasks: right answers after so many steps from the average of what all devices sent"
COST = "Cost, means over seeds"
Columns = tuple[str, Mapping[str, str], Sequence[str]]


def answered(table: pl.DataFrame) -> list[Columns]:
    """Titles, columns and remarks of the tables; none where devices do not answer questions."""
    if f"before/self/{LAST}" not in table.columns:
        return []
    costs = {f"kB {way} a device and round": f"bytes_{way}_per_node" for way in ("down", "up")}
    return [
        (QUALITY, _quality(), ("seeds", "chosen")),
        (MERGE, _around_the_merge(), ()),
        (GROUPS, _by_group(table), ()),
        (UNSEEN, _adaptation(table), ()),
        (COST, costs | {"seconds in all": "seconds"}, ()),
    ]


def _quality() -> dict[str, str]:
    columns: dict[str, str] = {}
    for shown, name in SETS.items():
        columns |= {f"{shown} A_last": f"before/{name}/{LAST}", f"{shown} A_AUC": f"before/{name}/{AREA}"}
    return columns | {"Self on validation": f"before/validation/{LAST}"}


def _around_the_merge() -> dict[str, str]:
    return {
        f"{shown}, {how}": f"{variant}/{name}/{LAST}"
        for shown, name in SETS.items()
        for how, variant in VARIANTS.items()
    }


def _by_group(table: pl.DataFrame) -> dict[str, str]:
    start, end = "before/self-", f"/{LAST}"
    found = [name.removeprefix(start).removesuffix(end) for name in table.columns if name.startswith(start)]
    groups = sorted({name for name in found if "/" not in name}, key=lambda name: (name not in SIZES, name))
    return {name: f"{start}{name}{end}" for name in groups}


def _adaptation(table: pl.DataFrame) -> dict[str, str]:
    names = [name for name in table.columns if name.startswith("unseen/")]
    return {name.split("/")[1].replace("after-", "") + " steps": name for name in names}
