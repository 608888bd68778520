"""Compares a dataset's counts with those that the FedVLR paper prints in its Table 1."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MISSING_TITLE = "The title is missing."
UNTITLED = f"items, before any filter, that have no title and are called {MISSING_TITLE!r}"
AMAZON_RELEASE = "the reviews are of Amazon's {} release"
"""The rule in dataset.json that says which one; the paper's is that of 2023."""


@dataclass(frozen=True)
class PaperCounts:
    """One line of Table 1: the paper's name of a dataset, its counts, and how its raw data can be recognised.

    `words` stand in the name of the folder or file, `kinds` are those it may be converted as, and `rule` is one that a
    conversion of the very same data records.
    """

    name: str
    users: int
    items: int
    interactions: int
    words: str
    kinds: tuple[str, ...]
    rule: str = ""

    def differences(self, counts: Mapping[str, int]) -> dict[str, int]:
        """How many more users, items and interactions `counts` has than the paper; what is equal is left out."""
        paper = {"users": self.users, "items": self.items, "interactions": self.interactions}
        return {name: counts[name] - paper[name] for name in paper if counts[name] != paper[name]}


_2023, _NINEREC = AMAZON_RELEASE.format(2023), ("ninerec", "fedvlr")
PAPER_COUNTS = (
    PaperCounts("Beauty", 253, 356, 2_535, "all beauty", ("amazon",), _2023),
    PaperCounts("Cards", 377, 129, 2_429, "gift cards", ("amazon",), _2023),
    PaperCounts("ML", 610, 3_650, 90_274, "ml latest small", ("movielens",)),
    PaperCounts("KU", 204, 560, 3_488, "ku", _NINEREC),
    PaperCounts("Dance", 10_231, 1_676, 80_086, "bili dance", _NINEREC),
    PaperCounts("Food", 5_990, 1_125, 36_482, "bili food", _NINEREC),
    PaperCounts("Movie", 15_908, 2_528, 111_091, "bili movie", _NINEREC),
)


def in_the_paper(about: Mapping[str, Any]) -> PaperCounts | None:
    """The paper's dataset that a dataset.json names as its source or is called after, if it is of such a kind."""
    said = " ".join(re.findall(r"[a-z]+|\d+", f"{about['source']} {about['name']}".lower()))
    fitting = (paper for paper in PAPER_COUNTS if about["kind"] in paper.kinds and f" {paper.words} " in f" {said} ")
    return next(fitting, None)


def verdict(paper: PaperCounts, about: Mapping[str, Any]) -> str:
    """Say whether the counts of a dataset.json are the paper's, where they are not, and whether the data are others."""
    listed = ", ".join(f"{more:+,} {name}" for name, more in paper.differences(about["counts"]).items())
    counts = f"differ from those of {paper.name} in the paper's Table 1: {listed}"
    if not listed:
        counts = f"are those of {paper.name} in the paper's Table 1"
    others = paper.rule not in ("", *about["rules"])
    return f"The counts {counts}." + (f" The paper's data are others: there, {paper.rule}." if others else "")
