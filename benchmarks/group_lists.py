"""python -m tessera.benchmarks.group_lists RUN [--people 2] [--k 5] [--seed 0]

Shows what groups make of a model: the best items for a few drawn people by the shared model alone, by their own group's map and
by another group's, the next one (PerPEFT's Fig. 5). For everybody it counts how many of the ten best stay the same. It says how
many numbers the maps are, and how long it takes to rank for somebody who never trained: by the shared model, and with a group
that is found first.

RUN is the folder of a finished run of `tessera train` with groups, on one node, such as that of perpeft/groups.yaml. Prints
lists, and one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.client import cohort
from tessera.client.aspects.groups import GROUP
from tessera.client.histories import histories
from tessera.client.recommend import Personal
from tessera.common.data.interactions import Split
from tessera.common.errors import DataError
from tessera.common.protocol.messages import FIXED, GROUP_MAPS, VIEWS
from tessera.common.protocol.tensors import Tensors

BEST = 10
"""Items of a list that are compared."""
TIMES = 50
"""How often ranking for one person is timed."""
ROWS = ("shared", "own group", "another group")


@dataclass(frozen=True)
class Lists:
    """The best items of people [n_people, k] by each of ROWS, and who they are."""

    users: tuple[str, ...]
    groups: list[int]
    best: dict[str, Tensor]

    def alike(self, row: str) -> float:
        """Share of people's best items by their own group that are among the best by `row` too."""
        own, other = self.best["own group"], self.best[row]
        return float((own[:, :, None] == other[:, None, :]).any(2).float().mean())


def opened(run: Path) -> Personal:
    """What the run's only device learnt. Raises `DataError` where there are several, or no groups."""
    folders = sorted((run / "devices").glob("node-*"))
    if len(folders) != 1:
        raise DataError(f"{run} has {len(folders)} nodes: give a run on one (--set federation.nodes=1)")
    personal = Personal.open(folders[0])
    if GROUP_MAPS not in personal.sent:
        raise DataError(f"{run} has no groups: set local.groups.count")
    return personal


def lists(personal: Personal, k: int) -> Lists:
    """The k best items for everybody who is in a group and trained, what they had left out."""
    settings, shared = personal.task.settings.local, {**personal.sent, GROUP_MAPS: 0 * personal.sent[GROUP_MAPS]}
    found: dict[str, list[Tensor]] = {row: [] for row in ROWS}
    users, groups = list[str](), list[int]()
    for split, private in personal.people():
        there = (private[GROUP][:, 0] >= 0).nonzero()[:, 0]
        if split.is_new or not len(there):
            continue
        split = split.take(there.numpy())
        private = {name: value[there] for name, value in private.items()}
        other = private | {GROUP: (private[GROUP] + 1) % settings.groups.count}
        known = histories(split)
        for row, (sent, own) in zip(
            ROWS, ((shared, private), (personal.sent, private), (personal.sent, other)), strict=True
        ):
            scores = cohort.scores(own, sent, known, settings)[0].masked_fill(known.mask(), -torch.inf)
            found[row].append(scores.topk(k).indices)
        users += split.users
        groups += private[GROUP][:, 0].int().tolist()
    return Lists(tuple(users), groups, {row: torch.cat(parts) for row, parts in found.items()})


def milliseconds(personal: Personal) -> dict[str, float]:
    """Median time to rank for one person who never trained, with the longest history: by the shared model, and by a group."""
    settings = personal.task.settings.local
    everybody = personal.device.split(personal.task.settings)
    person = everybody.take(np.array([int(np.diff(everybody.offsets).argmax())]))
    fresh = cohort.start_state(person.users, settings, personal.sent[VIEWS], 0).parameters
    without = {name: value for name, value in personal.sent.items() if name != GROUP_MAPS}
    return {
        "shared": _timed(person, fresh, without, personal),
        "group found": _timed(person, fresh, personal.sent, personal),
    }


def _timed(person: Split, private: dict[str, Tensor], sent: Tensors, personal: Personal) -> float:
    known, settings = histories(person), personal.task.settings.local
    return 1000 * median(_seconds(lambda: cohort.scores(private, sent, known, settings)) for _ in range(TIMES))


@torch.no_grad()
def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print the lists of a few people and the figures of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--people", type=int, default=2)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of who is shown")
    given = parser.parse_args(arguments)
    personal = opened(given.run)
    found, catalogue = lists(personal, max(BEST, given.k)), personal.device.catalogue()
    if given.people > len(found.users):
        raise DataError(f"--people {given.people}: {given.run} has {len(found.users)} people in groups")
    drawn = np.random.default_rng(given.seed).choice(len(found.users), given.people, replace=False)
    for person in drawn.tolist():
        print(f"{found.users[person]}, group {found.groups[person]}")
        for row in ROWS:
            titles = [catalogue.title(int(item)) for item in found.best[row][person, : given.k]]
            print(f"  {row:14} {'; '.join(titles)}")
    maps = personal.sent[GROUP_MAPS]
    learnt = {name: value for name, value in personal.sent.items() if name not in FIXED}
    figures = {
        "people": len(found.users),
        "groups": np.bincount(found.groups, minlength=personal.task.settings.local.groups.count).tolist(),
        "same of ten": {row: round(found.alike(row), 3) for row in ROWS if row != "own group"},
        "numbers of maps": maps.numel(),
        "numbers beside": sum(value.numel() for value in learnt.values()) - maps.numel(),
        "milliseconds for who never trained": {name: round(one, 2) for name, one in milliseconds(personal).items()},
    }
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main()
