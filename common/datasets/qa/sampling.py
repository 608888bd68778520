"""Draws the questions of a task from *labels* of movies, balanced so that only the content gives an answer away.

A label is the one genre of a domain's that a movie has, its decade, whether it belongs to the older or the newer third of
its domain, or to the better or the worse received. Labels and places of the right choice are balanced, right and wrong
movies are drawn alike, and all by counting (`tessera.common.utils.counter_rng`): the same movies give the same questions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.common.data.questions import PICTURE, TEXT, WORD, Questions
from tessera.common.errors import DataError
from tessera.common.utils import counter_rng

Rows = NDArray[np.int64]
Drawn = tuple[Rows, Rows, Rows]
"""Pieces [n, n_pieces, 2], choices [n, n_choices, 2] and answers [n]."""
UNLABELLED = -1
MIN_POOL = 4
"""Movies that a label needs at least: as many as a question may show."""
RECEPTION = ("well received", "badly received")
PLACES = ("first", "second", "third", "fourth")
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Movies:
    """What is known of every item: `genres` [n_items] by name, `years` [n_items], mean `ratings` [n_items].

    A year that is not known is 0; the mean of too few ratings is NaN.
    """

    genres: Mapping[str, NDArray[np.bool_]]
    years: Rows
    ratings: NDArray[np.float64]


@dataclass(frozen=True)
class Domain:
    """Movies with any of `genres` (any movie, where none is named) of the years `since` to `until`."""

    name: str
    genres: tuple[str, ...] = ()
    since: int = 1
    until: int = 9999

    def holds(self, movies: Movies) -> NDArray[np.bool_]:
        """Which movies belong to the domain, [n_items]."""
        years = (movies.years >= self.since) & (movies.years <= self.until)
        having = sum((movies.genres[genre] for genre in self.genres), np.full(len(years), not self.genres))
        return years & having


@dataclass(frozen=True)
class Task:
    """A `question` about the movies of a `domain`, distinguished by their `label`, shown as `kinds` of pieces."""

    family: str
    question: str
    label: str
    domain: Domain
    kinds: tuple[int, ...] = (PICTURE,)

    @property
    def name(self) -> str:
        """What no other task is called."""
        shown = "+".join({PICTURE: "picture", TEXT: "text"}[kind] for kind in self.kinds)
        return "/".join((self.family, self.question, self.label, self.domain.name, shown))

    @property
    def instruction(self) -> str:
        """What is asked, in words."""
        return INSTRUCTIONS[self.question, self.label]

    def draw(
        self, movies: Movies, allowed: NDArray[np.bool_], part: str, n: int, words: Mapping[str, int]
    ) -> Questions:
        """Draw `n` questions about the movies `allowed` [n_items], fewer where each movie is asked about only once.

        `words` are the codebook's rows by name. Raises `DataError` when a label has too few movies.
        """
        labels, names = LABELS[self.label](movies, self.domain)
        labels = np.where(self.domain.holds(movies) & allowed, labels, UNLABELLED)
        pools = [np.flatnonzero(labels == label) for label in range(len(names))]
        for pool, name in zip(pools, names, strict=True):
            if len(pool) < MIN_POOL:
                raise DataError(f"{self.name}: {len(pool)} movies for {part} are {name}, and it takes {MIN_POOL}")
        sampler = Sampler(counter_rng.key("questions", self.name, part), pools, names, words)
        pieces, choices, answers = map(torch.from_numpy, QUESTIONS[self.question](sampler, self.kinds, n))
        tasks = torch.zeros(len(answers), dtype=torch.int64)
        return Questions(tasks, pieces, choices, answers, (self.name,), (self.instruction,))


def by_genre(movies: Movies, domain: Domain) -> tuple[Rows, tuple[str, ...]]:
    """Which genre of the domain's a movie has; none when it has several."""
    has = np.stack([movies.genres[genre] for genre in domain.genres], axis=1)
    return np.where(has.sum(axis=1) == 1, has.argmax(axis=1), UNLABELLED), domain.genres


def by_decade(movies: Movies, domain: Domain) -> tuple[Rows, tuple[str, ...]]:
    """The decades from the domain's first year to its last."""
    decades = range(domain.since // 10, domain.until // 10 + 1)
    return movies.years // 10 - decades[0], tuple(f"{decade}0s" for decade in decades)


def by_age(movies: Movies, domain: Domain) -> tuple[Rows, tuple[str, ...]]:
    """The older third of the domain and the newer."""
    return _thirds(movies.years.astype(np.float64), domain.holds(movies)), ("older", "newer")


def by_reception(movies: Movies, domain: Domain) -> tuple[Rows, tuple[str, ...]]:
    """The better and the worse received third of the domain."""
    return _thirds(-movies.ratings, domain.holds(movies) & ~np.isnan(movies.ratings)), RECEPTION


def _thirds(values: NDArray[np.float64], among: NDArray[np.bool_]) -> Rows:
    """0 for the lowest third of `values` [n_items] `among` some, 1 for the highest; equal values are labelled alike."""
    if not among.any():
        return np.full(len(values), UNLABELLED)
    low, high = np.quantile(values[among], [1 / 3, 2 / 3])
    return np.where(values <= low, 0, np.where((values >= high) & (high > low), 1, UNLABELLED))


LABELS: Mapping[str, Callable[[Movies, Domain], tuple[Rows, tuple[str, ...]]]] = {
    "genre": by_genre,
    "decade": by_decade,
    "age": by_age,
    "reception": by_reception,
}


@dataclass(frozen=True)
class Sampler:
    """Balanced draws for one task: movies from `pools`, one for each label, called `names`."""

    salt: int
    pools: list[Rows]
    names: tuple[str, ...]
    words: Mapping[str, int]

    def balanced(self, purpose: str, n: int, values: int) -> Rows:
        """0 to `values` - 1 equally often, in random order, [n]."""
        return (np.arange(n) % values)[self._order(purpose, np.arange(n))]

    def other(self, purpose: str, labels: Rows) -> Rows:
        """A label that is not the one of `labels` [n], [n]."""
        return (labels + 1 + self.balanced(purpose, len(labels), len(self.pools) - 1)) % len(self.pools)

    def movies(self, purpose: str, labels: Rows, *without: Rows) -> Rows:
        """A movie for each of `labels` [n], all about equally often, never the one of `without`, [n]."""
        drawn = np.empty(len(labels), dtype=np.int64)
        for label, pool in enumerate(self.pools):
            rows = np.flatnonzero(labels == label)
            cycles = range(-(-len(rows) // len(pool)))
            order = [self._order(f"{purpose} {label} {cycle}", pool) for cycle in cycles]
            places = np.concatenate([*order, np.empty(0, dtype=np.int64)])[: len(rows)]
            for _ in without:
                clash = np.any([pool[places] == items[rows] for items in without], axis=0)
                places = (places + clash) % len(pool)
            drawn[rows] = pool[places]
        return drawn

    def offer(self, names: tuple[str, ...], n: int) -> Rows:
        """The same words as choices of every question, [n, n_choices, 2]."""
        return np.tile([(WORD, self.words[name]) for name in names], (n, 1, 1))

    def _order(self, purpose: str, counters: Rows) -> Rows:
        return (
            counter_rng.mix(counter_rng.key(self.salt, purpose), torch.from_numpy(counters))
            .argsort(stable=True)
            .numpy()
        )


def _pieces(kinds: tuple[int, ...], *items: Rows) -> Rows:
    """Pair items [n] each with kinds, the last kind being that of all that follow, [n, n_items, 2]."""
    of = [kinds[min(place, len(kinds) - 1)] for place in range(len(items))]
    return np.stack(
        [np.stack([np.full_like(row, kind), row], axis=1) for kind, row in zip(of, items, strict=True)], axis=1
    )


def _at(place: Rows, one: Rows, *others: Rows) -> list[Rows]:
    """Put `one` [n] at its `place` [n] among `others` [n] each."""
    n_others = len(others)
    table = np.stack([*others, one], axis=1)
    order = np.arange(n_others + 1) - (np.arange(n_others + 1) > place[:, None])
    order[np.arange(len(place)), place] = n_others
    return list(np.take_along_axis(table, order, axis=1).T)


def attribute(sampler: Sampler, kinds: tuple[int, ...], n: int) -> Drawn:
    """Which of the labels does a movie have? Every movie is asked about once."""
    n_labels = len(sampler.names)
    n = min(n // n_labels, *map(len, sampler.pools)) * n_labels
    labels, places = sampler.balanced("label", n, n_labels), sampler.balanced("place", n, n_labels)
    movies = sampler.movies("shown", labels)
    rows = np.array([sampler.words[name] for name in sampler.names])
    offered = rows[(labels[:, None] + np.arange(n_labels) - places[:, None]) % n_labels]
    return _pieces(kinds, *[movies] * len(kinds)), _pieces((WORD,), *offered.T), places


def contrast(sampler: Sampler, kinds: tuple[int, ...], n: int) -> Drawn:
    """Which of two movies has the first label?"""
    places = sampler.balanced("place", n, 2)
    pair = [sampler.movies(name, np.full(n, label)) for label, name in enumerate(("right", "wrong"))]
    return _pieces(kinds, *_at(places, *pair)), sampler.offer(PLACES[:2], n), places


def kin(sampler: Sampler, kinds: tuple[int, ...], n: int) -> Drawn:
    """Which of the first two movies has the label of the third?"""
    places, labels = sampler.balanced("place", n, 2), sampler.balanced("label", n, len(sampler.pools))
    third = sampler.movies("third", labels)
    pair = sampler.movies("right", labels, third), sampler.movies("wrong", sampler.other("other", labels))
    return _pieces(kinds, *_at(places, *pair), third), sampler.offer(PLACES[:2], n), places


def same(sampler: Sampler, kinds: tuple[int, ...], n: int) -> Drawn:
    """Do two movies have the same label?"""
    answers, labels = sampler.balanced("answer", n, 2), sampler.balanced("label", n, len(sampler.pools))
    first = sampler.movies("first", labels)
    second = sampler.movies("second", np.where(answers == 0, labels, sampler.other("other", labels)), first)
    return _pieces(kinds, first, second), sampler.offer(YES_NO, n), answers


def odd(sampler: Sampler, kinds: tuple[int, ...], n: int) -> Drawn:
    """Which of three movies has another label than the other two?"""
    return _odd(sampler, kinds, sampler.balanced("label", n, len(sampler.pools)))


def newest(sampler: Sampler, kinds: tuple[int, ...], n: int) -> Drawn:
    """Which of three movies has the second label, when the others have the first?"""
    return _odd(sampler, kinds, np.zeros(n, dtype=np.int64))


def _odd(sampler: Sampler, kinds: tuple[int, ...], labels: Rows) -> Drawn:
    n = len(labels)
    places = sampler.balanced("place", n, 3)
    first = sampler.movies("first", labels)
    second, third = sampler.movies("second", labels, first), sampler.movies("odd", sampler.other("other", labels))
    return _pieces(kinds, *_at(places, third, first, second)), sampler.offer(PLACES[:3], n), places


def match(hard: bool, kind: int, sampler: Sampler, kinds: tuple[int, ...], n: int) -> Drawn:
    """Which of four pieces of `kind` belongs to the first? Easy: of four labels. Hard: all of one.

    Answered by a place: offered themselves, items would be found by what every tower knows before it has learnt a question.
    """
    places, labels = sampler.balanced("place", n, 4), sampler.balanced("label", n, len(sampler.pools))
    items = [sampler.movies("shown", labels)]
    for wrong in range(1, 4):
        of = labels if hard else (labels + wrong) % len(sampler.pools)
        items.append(sampler.movies(f"wrong {wrong}", of, *items))
    return _pieces((*kinds, kind), items[0], *_at(places, *items)), sampler.offer(PLACES, n), places


def fits(hard: bool, sampler: Sampler, kinds: tuple[int, ...], n: int) -> Drawn:
    """Which of two texts belongs to the picture?"""
    places, labels = sampler.balanced("place", n, 2), sampler.balanced("label", n, len(sampler.pools))
    shown = sampler.movies("shown", labels)
    wrong = sampler.movies("wrong", labels if hard else sampler.other("other", labels), shown)
    return _pieces(kinds, shown, *_at(places, shown, wrong)), sampler.offer(PLACES[:2], n), places


def belongs(sampler: Sampler, kinds: tuple[int, ...], n: int) -> Drawn:
    """Does the text belong to the picture? Where it does not, it is of another label."""
    answers, labels = sampler.balanced("answer", n, 2), sampler.balanced("label", n, len(sampler.pools))
    shown = sampler.movies("shown", labels)
    wrong = sampler.movies("wrong", sampler.other("other", labels))
    return _pieces(kinds, shown, np.where(answers == 0, shown, wrong)), sampler.offer(YES_NO, n), answers


QUESTIONS: Mapping[str, Callable[[Sampler, tuple[int, ...], int], Drawn]] = {
    "attribute": attribute,
    "contrast": contrast,
    "kin": kin,
    "same": same,
    "odd": odd,
    "newest": newest,
    "text": partial(match, False, TEXT),
    "text-hard": partial(match, True, TEXT),
    "picture": partial(match, False, PICTURE),
    "picture-hard": partial(match, True, PICTURE),
    "fits": partial(fits, False),
    "fits-hard": partial(fits, True),
    "belongs": belongs,
}
INSTRUCTIONS: Mapping[tuple[str, str], str] = {
    ("attribute", "genre"): "what kind of movie is it",
    ("attribute", "decade"): "which decade is it from",
    ("attribute", "reception"): "how was it received",
    ("contrast", "age"): "which of the two is older",
    ("contrast", "reception"): "which of the two is better received",
    ("kin", "genre"): "which of the two is of the same kind as the third",
    ("same", "genre"): "are the two of the same kind",
    ("odd", "genre"): "which of the three is of another kind",
    ("newest", "age"): "which of the three is the newest",
    **dict.fromkeys((("text", "genre"), ("text-hard", "genre")), "which of the four texts belongs to the picture"),
    **dict.fromkeys(
        (("picture", "genre"), ("picture-hard", "genre")), "which of the four pictures belongs to the text"
    ),
    **dict.fromkeys((("fits", "genre"), ("fits-hard", "genre")), "which of the two texts belongs to the picture"),
    ("belongs", "genre"): "does the text belong to the picture",
}
