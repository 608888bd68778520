"""Decides which settings are worth trying first on a dataset, from what `describe` says that it has.

All rows have the history backbone, the best federated one on every dataset of benchmarks/RESULTS.md. What mattered there,
and is not known of a dataset before it is tried, becomes a row: whether the order of events says anything, whether contents
help, and how strongly what is learnt shrinks. On data without times order means nothing, and no row goes by it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.common.config.loading import overlaid
from tessera.common.errors import DataError

Content = dict[str, Any]
"""Nested settings."""
Reasons = dict[str, str]
"""Why a setting is what it is, by its dotted key."""

ALL_TOGETHER = 5_000_000
"""Pairs of a person and an item up to which everybody takes part in every round; above that a share of the people does."""
FEWEST = 0.05
"""The smallest such share."""
SCORES = 30_000_000
"""Scores that a device holds at once, about: people, times events asked for, times items and views."""
ASKED = 8
"""Events of a person that are asked for at once, by the loss `next`."""
UNSURE = 0.5
"""Share of the validation targets that time does not decide on from which order is taken to say little."""
SHORT = 10
"""Events of the median person below which order is taken to say little."""
MANY_COLD = 0.1
"""Share of the test targets that training never shows from which contents alone are worth a row."""
FOR_TOP_50 = 100
"""Items from which lists of 50 tell more than lists of 5."""


@dataclass(frozen=True)
class Facts:
    """What of a dataset's description its settings depend on; shares are from 0 to 1."""

    folder: str
    users: int
    items: int
    median_events: float
    modalities: tuple[str, ...]
    split: str
    timed: bool
    tied: float
    """Share of the validation targets that time alone does not decide on."""
    cold: float
    """Share of the test targets that training never shows."""

    @classmethod
    def of(cls, about: Mapping[str, Any], folder: str) -> "Facts":
        """Read them from what `tessera.common.datasets.describe` returned. Raises `DataError` for data without people,
        or without anybody to validate on."""
        if "split" not in about:
            raise DataError(
                f"{folder} holds no people's events (kind {about['kind']}): there is nothing to recommend by"
            )
        if not about["split"]["validation"]:
            raise DataError(
                f"nobody in {folder} has an event for validation, by which settings are chosen: mark some as validation in the "
                "column split, or leave that column out; people need at least three events"
            )
        split, timed = about["split"], bool(about.get("timed", True))
        return cls(
            folder,
            about["counts"]["users"],
            about["counts"]["items"],
            about["events_per_user"][2],
            tuple(about["features"]),
            split["rule"],
            timed,
            split["tied"]["validation"],
            split["cold_targets"],
        )

    @property
    def run(self) -> str:
        """A name for runs, which can be one of folders."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.folder).lstrip("-._") or "mine"

    @property
    def order_may_say_much(self) -> bool:
        """Whether to expect that the order of events tells what comes next."""
        return self.timed and self.tied < UNSURE and self.median_events >= SHORT

    @property
    def share(self) -> float:
        """Which share of the people is to take part in a round."""
        return max(FEWEST, round(min(1.0, ALL_TOGETHER / (self.users * self.items)), 2))


@dataclass(frozen=True)
class Row:
    """One way to learn: what it lays over the base, and why it is tried."""

    why: str
    settings: Content


@dataclass(frozen=True)
class FirstSettings:
    """What to try on a dataset: rows by name, over a base. The first row is the likeliest."""

    facts: Facts
    base: Content
    rows: dict[str, Row]
    reasons: Reasons

    def config(self) -> tuple[Content, Reasons]:
        """Settings of one run, of the likeliest row, and why each of them."""
        content = overlaid({"name": self.facts.run, **self.base}, next(iter(self.rows.values())).settings)
        return content, self.reasons | {"name": "the run's folder below runs/"}

    def grid(self) -> tuple[Content, Reasons]:
        """The same as a grid for `tessera bench`, and why each line of it."""
        small = self.facts.share == 1
        content: Content = {
            "name": f"{self.facts.run}-grid",
            "base": self.base,
            "methods": {name: row.settings for name, row in self.rows.items()},
            "seeds": [0],
            "baselines": ["itemknn"] if small else [],
            "quick": {"rounds": 2},
        }
        reasons = {f"base.{key}": why for key, why in self.reasons.items()}
        reasons |= {f"methods.{name}": row.why for name, row in self.rows.items()}
        return content, reasons | {
            "name": "the grid's folder below runs/",
            "seeds": "one is enough to choose by; take 0, 1 and 2 before you believe a small difference",
            "baselines": "what a plain method reaches that may see everybody's data in one place"
            if small
            else "none: centralised ones take long on data of this size",
            "quick": "with --quick: does it run at all?",
        }


def first_settings(about: Mapping[str, Any], folder: str) -> FirstSettings:
    """Decide for a dataset in `folder` by its description. Raises `DataError` for data without people."""
    facts = Facts.of(about, folder)
    base, reasons = _base(facts)
    found = _ordered(facts) if facts.timed else {}
    found = {**found, **_unordered(facts)} if facts.order_may_say_much else {**_unordered(facts), **found}
    return FirstSettings(facts, base, found, reasons | _about_rows(facts))


def _base(facts: Facts) -> tuple[Content, Reasons]:
    """What all rows share."""
    large, few = facts.share < 1, facts.items < FOR_TOP_50
    given = facts.split == "given"
    batch = max(1, min(512, SCORES // (facts.items * (len(facts.modalities) + 1) * ASKED)))
    content: Content = {
        "data": {"folder": facts.folder, **({"split": "given"} if given else {})},
        "rounds": 40 if large else 80,
        **({"fraction": facts.share} if large else {}),
        "local": {"backbone": "history", "batch_users": 1 << (batch.bit_length() - 1)},
        "evaluation": {"every": 10 if large else 5, "ks": [5, 10, 20] if few else [10, 20, 50], "patience": 4},
    }
    size = f"{facts.users:,} people and {facts.items:,} items"
    return content, {
        "data": "the split that the data come with"
        if given
        else "each person's last event is the test, the one before validation",
        "rounds": "at most: a run ends once validation has not got better for long",
        "fraction": f"{size}: a share of the people a round teaches nearly as much, and takes minutes, not hours",
        "local.backbone": "what a person did, summed, is what items are compared with: the best one in all our tables",
        "local.batch_users": f"people trained at once: bounds memory for {facts.items:,} items, changes no result",
        "evaluation.every": "rounds from one look at validation to the next"
        + ("; looking takes long here" if large else ""),
        "evaluation.ks": f"lengths of lists that are scored; there are {facts.items:,} items",
        "evaluation.patience": "looks without a better one before a run ends",
    }


def _ordered(facts: Facts) -> dict[str, Row]:
    """Rows that go by the order of events: the next one is asked for, old ones count less, and item vectors start from the
    interactions' singular vectors."""
    local = {"loss": "next", "recency": 1, "history_mask": 0.0, "learning_rate": 0.001}
    server = {"learning_rate": 0.003, "weight_decay": 1.0, "by_fan_in": True}
    views = {"operators": [], "dim": 128, "id_dim": 128, "spectral_rounds": 20}
    told = f"time does not decide on {facts.tied:.0%} of the validation targets"
    ids = Row(
        f"order, by item vectors alone: asks for the next event; {told}",
        {"views": {**views, "modalities": [], "spectral_scale": 10}, "local": local, "server": server},
    )
    if not facts.modalities:
        return {"next-ids": ids}
    contents = Row(
        f"order, with {' and '.join(facts.modalities)}: asks for the next event; {told}",
        {"views": {**views, "spectral_scale": 15}, "local": local, "server": server},
    )
    return {"next-views": contents, "next-ids": ids}


def _unordered(facts: Facts) -> dict[str, Row]:
    """Rows to which a history is a set."""
    local, wide = {"loss": "softmax", "learning_rate": 0.001}, {"operators": [], "dim": 128, "id_dim": 128}
    server = {"learning_rate": 0.01, "weight_decay": 1.0}
    steady = {"local": {"loss": "softmax", "weight_decay": 3.0}, "server": {"learning_rate": 0.01, "weight_decay": 3.0}}
    ids = Row(
        "no order, item vectors alone: all of a history is asked for from a half of it",
        {"views": {**wide, "modalities": []}, "local": local, "server": server},
    )
    if not facts.modalities:
        spectral = {**wide, "modalities": [], "spectral_rounds": 20}
        return {
            "set-ids": ids,
            "set-ids-spectral": Row(
                "the same from the interactions' singular vectors: fewer rounds are needed, and more is told before them",
                {"views": spectral, "local": local, "server": server | {"learning_rate": 0.003}},
            ),
            "set-ids-shrunk": Row(
                "the same, with what is learnt held small: where there are few events",
                {"views": {**wide, "modalities": []}, **steady},
            ),
        }
    names = " and ".join(facts.modalities)
    rows = {
        "set-views": Row(
            f"no order, with {names}, each a view: all of a history is asked for from a half of it",
            {"views": wide, "local": local, "server": server},
        ),
        "set-ids": ids,
        "set-views-shrunk": Row(
            "views, with what is learnt held small: where contents say much, or there are few events",
            {"views": wide, **steady},
        ),
        "set-views-fused": Row(
            "views, and four more that fuse them: where a mixture says more than its parts",
            {"local": local, "server": server},
        ),
    }
    if facts.cold >= MANY_COLD:
        rows["contents"] = Row(
            f"contents alone, which know items that nobody has: {facts.cold:.0%} of the test targets are never in training",
            {
                "views": {
                    "operators": [],
                    "item_ids": False,
                    "encoder": "bottleneck",
                    "spectral_rounds": 20,
                    "spectral_scale": 15,
                },
                "local": {"backbone": "cosine", "loss": "softmax", "learning_rate": 0.001},
            },
        )
    return rows


def _about_rows(facts: Facts) -> Reasons:
    """Why the settings of rows are what they are, as far as the likeliest row has them."""
    names = ", ".join((*facts.modalities, "item vectors"))
    ordered = facts.order_may_say_much
    order = "time says which comes next" if ordered else "the order says little, as far as we see"
    return {
        "views.operators": f"none: each of {names} is a view of its own, so that reasons can be read",
        "views.modalities": "none: there are no features" if not facts.modalities else "item vectors alone",
        "views.dim": "numbers by which a view describes an item; half of it is a little worse, and travels in half the bytes",
        "views.id_dim": "the same of the learnt item vectors",
        "views.spectral_rounds": "rounds of sums before the first: vectors start from the interactions, which saves rounds",
        "views.spectral_scale": "how sharply the first scores tell items apart",
        "local.loss": f"{order}: " + ("asks for the next event" if ordered else "asks for all of a history"),
        "local.recency": "an event counts 1/(1 + later events): what was done last says most",
        "local.history_mask": "nothing is hidden: the loss asks only for what comes after",
        "local.learning_rate": "the device's rate, for what stays there",
        "server.learning_rate": "the server's rate, for views and item vectors; 0.003 or 0.01 was best in our tables",
        "server.weight_decay": "strong, as there are few events for each number that is learnt",
        "server.by_fan_in": "wide maps of contents learn slower: they would outrun the item vectors",
    }
