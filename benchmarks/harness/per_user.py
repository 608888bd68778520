"""Results of a bench person by person: each one's hit, gain and activity, for quartiles and paired comparisons.

No message of the protocol carries any of this. A device sends sums over its people, and not even the replicates of
weighted sums that a bootstrap over nodes would need: from a few of them, the people of a small node could be solved for. The
devices of a bench are simulated and lie on the researcher's own machine; here, and only here, they are read side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from tessera.client import cohort
from tessera.client.evaluation import Scorer
from tessera.client.histories import Histories, histories
from tessera.client.recommend import Personal
from tessera.common.config.settings import EvaluationSettings, LocalSettings
from tessera.common.data.interactions import Split
from tessera.common.errors import RunError
from tessera.common.metrics.names import ALL, COVERAGE, HR, NDCG, TEST, USERS, MetricName, Scores
from tessera.common.metrics.ranking import standing
from tessera.common.metrics.several import person_values
from tessera.common.utils.atomic_files import PRIVATE, write_bytes
from tessera.common.utils.tables import read_table
from tessera.common.utils.torch_device import resolve_device

METRICS = (HR, NDCG)
MOST_EVENTS = "most_events"


@dataclass(frozen=True)
class Quartiles:
    """Four groups of people: by which column of training events, and the groups' names, those of the fewest first."""

    column: str
    title: str
    groups: tuple[str, str, str, str]

    def parts(self, people: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """The people of each group that has any. Who is at a quartile's bound is below it, so that equals are never parted."""
        events = people[self.column].to_numpy()
        bounds = np.quantile(events, [0.25, 0.5, 0.75]) if len(people) else np.zeros(3)
        quartile = np.searchsorted(bounds, events, side="left")
        parts = {name: people.filter(quartile == number) for number, name in enumerate(self.groups)}
        return {name: members for name, members in parts.items() if len(members)}


ACTIVITY = Quartiles("activity", "training events", ("q1", "q2", "q3", "q4"))
"""People by how active they are."""
RARITY = Quartiles("frequency", "how often the test item occurs in training", ("f1", "f2", "f3", "f4"))
"""People by how rare their test item is: of several the rarest counts."""
QUARTILES = (ACTIVITY, RARITY)
"""What people are divided by in tables."""


@dataclass(frozen=True)
class PerUserResults:
    """How people with a test item are served: user, activity (training events), frequency (how often anybody has the target,
    or the rarest of several, in training), warm (whether any target occurs in training), hr and ndcg (expected, at the largest
    K, in %). `covered` [n_items]: is the item among anybody's first K?"""

    table: pl.DataFrame
    covered: Tensor

    def figures(self, k: int) -> Scores:
        """HR and NDCG by quartile of activity and of the target's frequency, and the share of the catalogue in anybody's first
        K, in %."""
        found = {MetricName(TEST, ALL, COVERAGE, k): 100 * float(self.covered.double().mean())}
        for quartiles in QUARTILES:
            for name, members in quartiles.parts(self.table).items():
                found[MetricName(TEST, name, USERS)] = float(len(members))
                found[MetricName(TEST, name, MOST_EVENTS)] = float(members[quartiles.column].to_numpy().max())
                found |= {
                    MetricName(TEST, name, metric, k): float(members[metric].to_numpy().mean()) for metric in METRICS
                }
        return found

    def save(self, path: Path) -> None:
        """Write the table, readable by its owner alone."""
        buffer = BytesIO()
        self.table.write_parquet(buffer)
        write_bytes(path, buffer.getvalue(), PRIVATE)


def load_people(path: Path) -> pl.DataFrame:
    """Read the table that `PerUserResults.save` wrote."""
    return read_table(path, ("user", "activity", "warm", *METRICS))


def ranked(scorer: Scorer, split: Split, counts: Tensor, settings: EvaluationSettings) -> PerUserResults:
    """Rank the catalogue for the test item of everybody in `split`, person by person; `tessera.client.evaluation` gives the
    sums.

    `counts` [n_items] says how often an item occurs in anybody's training data.
    """
    seen = histories(split, split.validation)
    known = seen if settings.history_at_test == "train+validation" else histories(split)
    scores = scorer(known.to(counts.device, torch.get_default_dtype()))
    candidates, k = ~seen.mask().to(counts.device), max(settings.ks)
    best = scores.masked_fill(~candidates, -torch.inf).topk(min(k, split.n_items), dim=1)
    covered = torch.zeros(split.n_items, dtype=torch.bool, device=counts.device)
    covered[best.indices[best.values > -torch.inf]] = True
    places, targets = (torch.from_numpy(one).to(counts.device) for one in (split.test.owners, split.test.items))
    above, ties = standing(scores[places], targets, candidates[places])
    people, values = person_values(places, above, ties, (HR, NDCG), (k,))
    rows, warm = people.cpu().numpy(), torch.zeros(len(split.users), dtype=torch.bool, device=counts.device)
    warm[places[counts[targets] > 0]] = True
    rarest = torch.full((len(split.users),), torch.inf, device=counts.device)
    rarest.scatter_reduce_(0, places, counts[targets].to(rarest.dtype), "amin")
    columns = {
        "user": [split.users[row] for row in rows],
        "activity": np.diff(split.offsets)[rows],
        "frequency": rarest[people].long().cpu().numpy(),
        "warm": warm[people].cpu().numpy(),
        "hr": (100 * values[HR, k].double()).cpu().numpy(),
        "ndcg": (100 * values[NDCG, k].double()).cpu().numpy(),
    }
    return PerUserResults(pl.DataFrame(columns, schema_overrides={"user": pl.String}), covered.cpu())


def together(parts: Sequence[PerUserResults]) -> PerUserResults:
    """The people of several devices or blocks, in the order of their names."""
    covered = torch.stack([part.covered for part in parts]).any(0)
    return PerUserResults(pl.concat([part.table for part in parts]).sort("user"), covered)


def people_of(devices: Sequence[Path], selected_round: int | None) -> PerUserResults:
    """Rank for everybody with the state of the selected round. Raises `RunError` when a device has another."""
    if selected_round is None:
        raise RunError(f"no round was evaluated; {devices[0].parent.parent / 'metrics.jsonl'} says why")
    opened = [Personal.open(folder) for folder in devices]
    for folder, personal in zip(devices, opened, strict=True):
        if personal.task.round != selected_round:
            raise RunError(f"round {selected_round} was selected, but {folder} goes by round {personal.task.round}")
    settings = opened[0].task.settings
    target = resolve_device(settings.device)
    splits = [personal.device.split(settings).training_users() for personal in opened]
    counts = torch.from_numpy(sum(split.counts() for split in splits)).to(target)
    parts = []
    for personal in opened:
        sent = {name: value.to(target) for name, value in personal.sent.items()}
        for block, private in replace(personal, sent=sent).people():
            if not block.is_new:
                parts.append(ranked(_scorer(private, sent, settings.local), block, counts, settings.evaluation))
    return together(parts)


def _scorer(private: dict[str, Tensor], sent: dict[str, Tensor], settings: LocalSettings) -> Scorer:
    def scorer(users: Histories) -> Tensor:
        return cohort.scores(private, sent, users, settings)[0]

    return scorer
