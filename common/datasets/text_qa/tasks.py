"""Words the tasks: what is asked about a movie, about two, and about what a person liked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tessera.common.datasets.text_qa.movies import Movie

Line = tuple[str, Sequence[str], str]
"""Prompt, choices and answer."""
HISTORY = 3
"""Movies of a history that is told."""


@dataclass(frozen=True)
class World:
    """The movies and the people of one part, training or test, and the draws of one task."""

    movies: Sequence[Movie]
    histories: Sequence[Sequence[Movie]]
    rng: np.random.Generator

    def pick(self, n: int, of: Callable[[Movie], bool] = lambda movie: True) -> list[Movie]:
        """`n` different movies of a kind."""
        able = [movie for movie in self.movies if of(movie)]
        return [able[place] for place in self.rng.choice(len(able), n, replace=False)]

    def shuffled(self, right: str, wrong: Sequence[str]) -> tuple[str, ...]:
        """Choices in random order."""
        offered = [right, *wrong]
        return tuple(offered[place] for place in self.rng.permutation(len(offered)))


Draw = Callable[[World], Line]


def recommend(liking: str) -> Draw:
    """What will somebody like next, of people who like a genre most?"""

    def draw(world: World) -> Line:
        fans = [one for one in world.histories if sum(liking in movie.genres for movie in one) * 2 >= len(one)]
        known = fans[world.rng.integers(len(fans))]
        at = int(world.rng.integers(HISTORY, len(known)))
        seen, right = known[at - HISTORY : at], known[at]
        wrong = world.pick(3, lambda movie: movie not in known)
        told = ", ".join(movie.title for movie in seen)
        offered = world.shuffled(right.title, [movie.title for movie in wrong])
        return f"Someone liked {told}. What will they like next?", offered, right.title

    return draw


def because(field: str) -> Draw:
    """Why may somebody who liked one movie like another? In words."""

    def draw(world: World) -> Line:
        one = world.pick(1)[0]
        like = [other for other in world.movies if other is not one and set(other.genres) & set(one.genres)]
        other = like[int(world.rng.integers(len(like)))]
        shared = [genre.lower() for genre in one.genres if genre in other.genres]
        if field == "genres":
            answer = f"Both are {' and '.join(shared)} movies."
        else:
            nearer = "around the same time" if abs(one.year - other.year) <= 5 else "in different times"
            answer = f"Both are {shared[0]} movies, made {nearer}."
        return f"Why may someone who liked {one.named} like {other.named}?", (), answer

    return draw


def genre(world: World) -> Line:
    """Which genre is it?"""
    movie, genres = world.pick(1)[0], sorted({genre for movie in world.movies for genre in movie.genres})
    absent = [one for one in genres if one not in movie.genres]
    wrong = [absent[place] for place in world.rng.choice(len(absent), 3, replace=False)]
    right = movie.genres[int(world.rng.integers(len(movie.genres)))]
    return f"Which genre is {movie.title}?", world.shuffled(right, wrong), right


def plot(world: World) -> Line:
    """Which movie is told of?"""
    right, *wrong = world.pick(4)
    told = " ".join(right.told.split()[:20])
    return f"Which movie is this? {told}", world.shuffled(right.title, [m.title for m in wrong]), right.title


def genres_in_words(world: World) -> Line:
    """All its genres. In words."""
    movie = world.pick(1)[0]
    return f"List the genres of {movie.named}.", (), ", ".join(movie.genres)


def decade(world: World) -> Line:
    """When was it made?"""
    movie = world.pick(1)[0]
    right = movie.year // 10 * 10
    wrong = [one for one in (1950, 1960, 1970, 1980, 1990, 2000, 2010) if one != right]
    chosen = [f"{wrong[place]}s" for place in world.rng.choice(len(wrong), 3, replace=False)]
    return f"In which decade was {movie.title} made?", world.shuffled(f"{right}s", chosen), f"{right}s"


def better(world: World) -> Line:
    """Which of two did people rate higher? Of several pairs the one furthest apart."""
    pairs = [world.pick(2) for _ in range(4)]
    one, other = max(pairs, key=lambda pair: abs(pair[0].rating - pair[1].rating))
    right = one if one.rating > other.rating else other
    return f"Which movie do people rate higher, {one.title} or {other.title}?", (one.title, other.title), right.title


def older(world: World) -> Line:
    """Which of two is older?"""
    one = world.pick(1)[0]
    other = world.pick(1, lambda movie: abs(movie.year - one.year) >= 5 and movie.title != one.title)[0]
    right = one if one.year < other.year else other
    return f"Which movie is older, {one.title} or {other.title}?", (one.title, other.title), right.title


CLIENTS: tuple[Mapping[str, Draw], ...] = (
    {"recommend/comedy": recommend("Comedy"), "recommend/drama": recommend("Drama"), "attribute/genre": genre,
     "explain/genres": because("genres")},
    {"recommend/action": recommend("Action"), "recommend/thriller": recommend("Thriller"), "attribute/plot": plot,
     "explain/times": because("times")},
    {"compare/rated": better, "attribute/decade": decade, "attribute/genre-too": genre, "describe/genres": genres_in_words},
    {"compare/older": older, "attribute/decade-too": decade, "attribute/plot-too": plot,
     "describe/genres-too": genres_in_words},
)  # fmt: skip
"""The tasks of four clients. The first two are alike, and so are the last two: with two device classes given out in turn,
whoever learns what a device learns has another model."""
