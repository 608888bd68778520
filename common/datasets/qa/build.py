"""Builds the many-task question-answering benchmark from MovieLens: ten clients' questions, unseen tasks, and a codebook.

A dataset of questions holds `items.parquet` and features as every dataset does, of the movies with poster and overview,
and no interactions, but

    questions/codebook.safetensors                 see `tessera.common.data.questions.Codebook`
    questions/public.safetensors                   "rows": the items that pretraining and alignment may use, never a test item
    questions/client-NN/{train,test}.safetensors   `common.data.questions.Questions`, a quarter of the movies being for tests
    questions/unseen-NN/{train,test}.safetensors   tasks that no client has
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.common.data.catalogue import Catalogue, image_and_text
from tessera.common.data.questions import Codebook, concatenate
from tessera.common.datasets.movielens import read_movielens
from tessera.common.datasets.preprocess import build_catalogue, ordered
from tessera.common.datasets.qa.sampling import RECEPTION, Domain, Movies
from tessera.common.datasets.qa.tasks import CLIENTS, UNSEEN
from tessera.common.datasets.raw import NAME, NUMBER, Options, RawDataset, read_rows
from tessera.common.errors import DataError
from tessera.common.towers.shared_space import SIGNS, shared_space, word_directions
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import write_tensors
from tessera.common.utils.torch_device import one_thread

QUESTIONS = "questions"
N_TRAIN, N_TEST = 800, 100
"""Questions of a task; fewer are for training where a domain has fewer movies to ask about once each."""
TEST_SHARE = 0.25
MIN_RATINGS = 5
"""Fewer ratings say little about how a movie was received."""


def write_questions(
    source: Path, options: Options, folder: Path, n_train: int = N_TRAIN, n_test: int = N_TEST
) -> dict[str, Any]:
    """Build the benchmark from raw MovieLens data at `source` below `folder`; return what dataset.json says about it.

    `source` holds movies.csv, ratings.csv, overviews.csv, and posters and texts as features or to be encoded. Raises
    `DataError` that names the file, or the task that has too few movies.
    """
    raw = read_movielens(source, options)
    catalogue, remarks = build_catalogue(raw, ordered(_shown(raw, options)), folder, options)
    movies = read_movies(source, catalogue.items)
    test = _held_out(catalogue.items)
    public = torch.from_numpy(np.flatnonzero(~test))
    codebook = fit_codebook(catalogue, movies, public)
    words = {name: row for row, name in enumerate(codebook.names)}
    catalogue.save(folder)
    codebook.save(folder / QUESTIONS / "codebook.safetensors")
    write_tensors(folder / QUESTIONS / "public.safetensors", {"rows": public})
    groups = {f"client-{number:02d}": tasks for number, tasks in enumerate(CLIENTS)}
    groups |= {f"unseen-{number:02d}": (task,) for number, task in enumerate(UNSEEN)}
    for group, tasks in groups.items():
        for part, allowed, n in (("train", ~test, n_train), ("test", test, n_test)):
            drawn = concatenate([task.draw(movies, allowed, part, n, words) for task in tasks])
            drawn.save(folder / QUESTIONS / group / f"{part}.safetensors")
    return {
        "source": raw.source,
        "filters": {},
        "rules": [
            "only movies with poster and overview",
            f"a share of {TEST_SHARE} of them, by hash, is for tests only",
            *remarks,
        ],
        "tasks": {group: [task.name for task in tasks] for group, tasks in groups.items()},
    }


def _shown(raw: RawDataset, options: Options) -> pl.DataFrame:
    """The items that have an overview and a poster: features of both, or what an encoder makes them of."""
    if raw.items is None:
        raise DataError(f"{raw.folder / 'movies.csv'} does not exist")
    items = raw.items.filter(pl.col("text").str.strip_chars() != "")
    if items.is_empty():
        raise DataError(f"{raw.folder / 'overviews.csv'} does not exist, or has no overview of a movie in movies.csv")
    if options.encode is not None:
        return items.filter(pl.col("image") != "")
    for modality in ("image", "text"):
        if modality not in raw.features:
            raise DataError(f"{raw.folder} has no {modality}_features.npy: add it, or have it encoded")
        items = items.filter(pl.col("item").is_in(raw.features[modality].ids))
    return items


def _held_out(items: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which items are for tests only, [n_items]; it depends on an item's id alone."""
    counters = torch.tensor([counter_rng.key("movie", item) for item in items], dtype=torch.int64)
    held_out: NDArray[np.bool_] = (
        counter_rng.uniform(counter_rng.key("questions", "test"), counters) < TEST_SHARE
    ).numpy()
    return held_out


def read_movies(source: Path, items: tuple[str, ...]) -> Movies:
    """Genres and year (in the title's brackets) from movies.csv, mean ratings from ratings.csv, of `items`."""
    order = pl.DataFrame({"movieId": items})
    rows = read_rows(source / "movies.csv", {"movieId": NAME, "title": NAME, "genres": NAME})
    frame = order.join(rows, on="movieId", how="left", maintain_order="left")
    genres = frame["genres"].str.split("|").to_list()
    known = {genre for domain in _domains() for genre in domain.genres}
    rated = (
        read_rows(source / "ratings.csv", {"movieId": NAME, "rating": NUMBER})
        .group_by("movieId")
        .agg(pl.col("rating").sort().mean(), pl.len())
        .filter(pl.col("len") >= MIN_RATINGS)
    )
    ratings = order.join(rated, on="movieId", how="left", maintain_order="left")["rating"]
    years = frame["title"].str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64).fill_null(0)
    has = {genre: np.array([genre in of for of in genres], dtype=bool) for genre in sorted(known)}
    return Movies(has, years.to_numpy(), ratings.cast(pl.Float64).fill_null(np.nan).to_numpy())


def _domains() -> list[Domain]:
    return [task.domain for task in (*(task for tasks in CLIENTS for task in tasks), *UNSEEN)]


@one_thread()
def fit_codebook(catalogue: Catalogue, movies: Movies, public: Tensor) -> Codebook:
    """Every item's vectors in the shared space, fitted on the `public` [n] items, and a direction of its own for each word.

    A word's vector knows nothing of what the word means: with the mean of the items that have an attribute, its label
    would reach every device without a question, and the frozen towers answer as well as trained ones. Nor has it anything of
    how fitted towers answer (`tessera.common.towers.shared_space.word_directions`): they begin at chance.
    """
    space = shared_space(*image_and_text(catalogue), public)
    names = (*_attributes(movies, public.numpy()), *SIGNS)
    return Codebook(word_directions(len(names)), space.image, space.text, names)


def _attributes(movies: Movies, public: NDArray[np.int64]) -> list[str]:
    """The genres and decades that the `public` [n] items have, and how a movie was received."""
    decades = sorted(set((movies.years[public] // 10).tolist()) - {0})
    return [
        *(name for name, mask in movies.genres.items() if mask[public].any()),
        *(f"{d}0s" for d in decades),
        *RECEPTION,
    ]
