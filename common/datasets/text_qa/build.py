"""Builds the benchmark of questions in words from MovieLens.

A dataset of questions in words holds `items.parquet`, of all movies that are asked about, and

    questions/client-NN/{train,test}.jsonl   see `tessera.common.data.text_questions`

Tests are about other movies and other people than training: a quarter of each, by hash.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tessera.common.data.catalogue import Catalogue
from tessera.common.data.text_questions import TextQuestions
from tessera.common.datasets.raw import Options
from tessera.common.datasets.text_qa.movies import Movie, read_histories, read_movies
from tessera.common.datasets.text_qa.tasks import CLIENTS, HISTORY, Draw, World
from tessera.common.utils import counter_rng

N_TRAIN, N_TEST = 120, 16
"""Questions of a task."""
TEST_SHARE = 0.25


def write_text_questions(
    source: Path, options: Options, folder: Path, n_train: int = N_TRAIN, n_test: int = N_TEST
) -> dict[str, Any]:
    """Build the benchmark from raw MovieLens data at `source` below `folder`; return what dataset.json says about it.

    `source` holds movies.csv, ratings.csv and overviews.csv. Raises `DataError` that names the file.
    """
    movies = read_movies(source)
    people = read_histories(source, movies)
    public = [movie for movie in movies.values() if not _held_out("movie", movie.id)]
    titles, texts = tuple(movie.named for movie in public), tuple(movie.told for movie in public)
    Catalogue(tuple(movie.id for movie in public), titles, texts, ("",) * len(public)).save(folder)
    for number, tasks in enumerate(CLIENTS):
        for part, n in (("train", n_train), ("test", n_test)):
            drawn = _draw(tasks, part, n, movies, people, number)
            drawn.save(folder / "questions" / f"client-{number:02d}" / f"{part}.jsonl")
    return {
        "source": source.name,
        "filters": {},
        "rules": [
            "only movies with overview, year and 20 ratings",
            f"a share of {TEST_SHARE} of the movies, and of the people, by hash, is for tests only; the items are the others",
        ],
        "tasks": {f"client-{number:02d}": list(tasks) for number, tasks in enumerate(CLIENTS)},
    }


def _draw(
    tasks: Mapping[str, Draw],
    part: str,
    n: int,
    movies: Mapping[str, Movie],
    people: Mapping[str, list[str]],
    client: int,
) -> TextQuestions:
    """Questions of a client's tasks, one task after the other, none twice."""
    test = part == "test"
    own = [movie for movie in movies.values() if _held_out("movie", movie.id) == test]
    allowed = {movie.id for movie in own}
    liked = [
        [movies[id] for id in ids if id in allowed]
        for person, ids in people.items()
        if _held_out("person", person) == test
    ]
    histories = [one for one in liked if len(one) > HISTORY]
    lines = []
    for name, draw in tasks.items():
        world = World(own, histories, np.random.default_rng(abs(counter_rng.key("text-questions", client, name, part))))
        found: dict[str, tuple[str, str, tuple[str, ...], str]] = {}
        while len(found) < n:
            prompt, offered, answer = draw(world)
            if len(set(offered)) == len(offered):  # movies may have one title
                found.setdefault(prompt, (name, prompt, tuple(offered), answer))
        lines += list(found.values())
    return TextQuestions.of(lines)


def _held_out(what: str, id: str) -> bool:
    return counter_rng.key("text-questions", what, id) % 1000 < 1000 * TEST_SHARE
