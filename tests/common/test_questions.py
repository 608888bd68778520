"""Questions: kept whole on disk, and drawn so that only the content gives an answer away."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.questions import NOTHING, PICTURE, TEXT, WORD, Codebook, Questions, concatenate
from tessera.common.datasets import convert, describe
from tessera.common.datasets.qa.build import read_movies
from tessera.common.datasets.qa.sampling import RECEPTION, Domain, Movies, Task
from tessera.common.datasets.qa.tasks import CLIENTS, UNSEEN
from tessera.common.errors import ConfigError, DataError
from tessera.common.towers.shared_space import signs, word_directions

GENRES = (
    "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Drama", "Fantasy", "Horror", "Mystery",
    "Romance", "Sci-Fi", "Thriller", "War",
)  # fmt: skip
N_MOVIES = 2400
PARTS = [(group, part) for group in ("client", "unseen") for part in ("train", "test")]


def questions(n: int = 3, name: str = "a/b", instruction: str = "which of the two") -> Questions:
    """Questions that show a picture and a text, and offer two words."""
    pieces = torch.tensor([[(PICTURE, row), (TEXT, row)] for row in range(n)])
    choices = torch.tensor([[(WORD, 0), (WORD, 1)]] * n)
    answers = torch.arange(n) % 2
    return Questions(torch.zeros(n, dtype=torch.int64), pieces, choices, answers, (name,), (instruction,))


def test_questions_come_back_from_disk_and_are_the_same_file_again(tmp_path: Path) -> None:
    both = concatenate([questions(), questions(2, "c/d", "which of the three")])
    both.save(tmp_path / "one.safetensors")
    again = Questions.load(tmp_path / "one.safetensors")
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert (again.names, again.instructions) == (("a/b", "c/d"), ("which of the two", "which of the three"))
    assert torch.equal(again.pieces, both.pieces)
    assert again.tasks.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(again.take(again.tasks == 1).answers, torch.tensor([0, 1]))


def test_sets_of_different_width_are_filled_up_and_a_task_of_both_is_one() -> None:
    narrow = questions()
    narrow = Questions(
        narrow.tasks, narrow.pieces[:, :1], narrow.choices, narrow.answers, narrow.names, narrow.instructions
    )
    both = concatenate([narrow, questions()])
    assert both.names == ("a/b",)
    assert both.pieces[:3, 1].tolist() == [[NOTHING, 0]] * 3
    with pytest.raises(DataError, match="two instructions"):
        concatenate([questions(), questions(instruction="other")])


def test_what_no_reader_could_read_is_refused(tmp_path: Path) -> None:
    good = questions()
    rest = (good.names, good.instructions)
    with pytest.raises(DataError, match="question 1: there is no such answer"):
        Questions(good.tasks, good.pieces, good.choices, torch.tensor([0, 2, 0]), *rest)
    with pytest.raises(DataError, match="no such piece"):
        Questions(good.tasks, good.pieces.clone().fill_(WORD), good.choices, good.answers, *rest)
    with pytest.raises(DataError, match="no such task"):
        Questions(good.tasks + 1, good.pieces, good.choices, good.answers, *rest)
    with pytest.raises(DataError, match="do not fit"):
        Questions(good.tasks, good.pieces, good.choices, good.answers[:2], *rest)
    codebook = Codebook(torch.eye(2), torch.eye(2), torch.eye(2), ("yes", "no"))
    codebook.save(tmp_path / "codebook.safetensors")
    with pytest.raises(DataError, match=r"codebook\.safetensors holds no questions"):
        Questions.load(tmp_path / "codebook.safetensors")
    with pytest.raises(DataError, match="choice 2"):
        codebook.vectors(torch.tensor([[(PICTURE, 2), (WORD, 0)]]))


def test_a_choice_stands_for_a_row_of_its_kind(tmp_path: Path) -> None:
    Codebook(torch.eye(3), 2 * torch.eye(3), 3 * torch.eye(3), ("x", "y", "z")).save(tmp_path / "codebook")
    codebook = Codebook.load(tmp_path / "codebook")
    vectors = codebook.vectors(torch.tensor([[(PICTURE, 1), (TEXT, 2), (WORD, 0), (NOTHING, 0)]]))
    assert vectors.tolist() == [[[0, 2, 0], [0, 0, 3], [1, 0, 0], [0, 0, 0]]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MovieLens: movies of one genre each and the years 1970 to 2019, rated by seven people."""
    folder = tmp_path_factory.mktemp("raw") / "movies"
    folder.mkdir()
    rng = np.random.default_rng(0)
    ids, years = np.arange(1, N_MOVIES + 1) * 3, rng.integers(1970, 2020, N_MOVIES)
    rows = [f"{item},Movie {item} ({years[row]}),{GENRES[row % 14]}" for row, item in enumerate(ids)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *rows]) + "\n")
    texts = [f"{item},{item},A film.{item}" if row else f"{item},{item}," for row, item in enumerate(ids)]
    (folder / "overviews.csv").write_text("\n".join(["movieId,tmdbId,overview", *texts]) + "\n")
    rates = [f"{user},{item},{1 + (item + user) % 9 / 2},{user}" for item in ids for user in range(7)]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rates]) + "\n")
    for modality, dim in (("image", 80), ("text", 72)):
        np.save(folder / f"{modality}_features.npy", rng.standard_normal((N_MOVIES, dim)).astype(np.float16))
        np.save(folder / f"{modality}_ids.npy", ids)
    return folder


def converted(source: Path, destination: Path) -> Path:
    convert("questions", source, destination)
    return destination


@pytest.fixture(scope="module")
def dataset(source: Path) -> Path:
    return converted(source, source.parent / "dataset")


def loaded(dataset: Path, group: str, part: str) -> list[Questions]:
    return [Questions.load(path) for path in sorted(dataset.glob(f"questions/{group}-*/{part}.safetensors"))]


def items(asked: Questions) -> set[int]:
    """Every item that is shown or offered"""
    pairs = torch.cat([asked.pieces.flatten(0, 1), asked.choices.flatten(0, 1)])
    return set(pairs[(pairs[:, 0] == PICTURE) | (pairs[:, 0] == TEXT), 1].tolist())


def test_ten_clients_have_four_tasks_each_and_nobody_anothers() -> None:
    tasks = [task for tasks in (*CLIENTS, UNSEEN) for task in tasks]
    assert [len(tasks) for tasks in CLIENTS] == [4] * 10
    assert len({task.name for task in tasks}) == len(tasks)
    assert [{task.family for task in tasks} for tasks in CLIENTS] == (
        [{"relation"}] * 3 + [{"reasoning"}] * 3 + [{"attribute"}] * 4
    )
    families = [task.family for task in UNSEEN]
    assert [families.count(family) for family in ("relation", "reasoning", "attribute")] == [3, 2, 2]


def test_no_item_of_a_test_is_trained_on_or_public(dataset: Path) -> None:
    public = set(load_file(dataset / "questions/public.safetensors")["rows"].tolist())
    n_items = len(load_catalogue(dataset))
    assert n_items == N_MOVIES - 1  # one movie has no overview
    assert 0.2 < 1 - len(public) / n_items < 0.3
    for group, part in PARTS:
        for asked in loaded(dataset, group, part):
            shown = items(asked)
            assert shown <= public if part == "train" else not shown & public


@pytest.mark.parametrize(("group", "part"), PARTS)
def test_places_are_balanced_and_every_choice_is_another(dataset: Path, group: str, part: str) -> None:
    codebook = Codebook.load(dataset / "questions/codebook.safetensors")
    for asked in loaded(dataset, group, part):
        assert torch.equal(codebook.vectors(asked.choices).norm(dim=-1) > 0.99, asked.choices[..., 0] != NOTHING)
        for task, name in enumerate(asked.names):
            of = asked.take(asked.tasks == task)
            offered = int((of.choices[0, :, 0] != NOTHING).sum())
            counts = torch.bincount(of.answers, minlength=offered)
            assert counts.max() - counts.min() <= 1, name
            keys = of.choices[:, :offered, 0] * 10**6 + of.choices[:, :offered, 1]
            assert (keys.sort(1).values.diff(dim=1) > 0).all(), name


def test_words_that_are_right_are_right_equally_often(dataset: Path, source: Path) -> None:
    codebook = Codebook.load(dataset / "questions/codebook.safetensors")
    movies = read_movies(source, load_catalogue(dataset).items)
    for asked in loaded(dataset, "client", "train")[6:]:
        for task, name in enumerate(asked.names):
            of = asked.take(asked.tasks == task)
            right = of.choices[torch.arange(len(of)), of.answers, 1]
            words = [codebook.names[word] for word in right.tolist()]
            assert len(set(Counter(words).values())) == 1, name
            shown = of.pieces[:, 0, 1].tolist()
            assert len(set(shown)) == len(shown), name
            for item, said in zip(shown, words, strict=True):
                if said in movies.genres:
                    assert movies.genres[said][item]
                elif said not in RECEPTION:
                    assert said == f"{movies.years[item] // 10}0s"


def test_relations_are_true_of_the_movies_shown(dataset: Path, source: Path) -> None:
    movies = read_movies(source, load_catalogue(dataset).items)
    asked = loaded(dataset, "client", "train")[0]
    genre = np.stack(list(movies.genres.values())).argmax(0)
    pieces, answers = asked.pieces[..., 1].numpy(), asked.answers.numpy()
    older, kin, odd, same = (np.flatnonzero(asked.tasks.numpy() == task) for task in range(4))
    assert ((movies.years[pieces[older, 0]] < movies.years[pieces[older, 1]]) == (answers[older] == 0)).all()
    assert (genre[pieces[kin, answers[kin]]] == genre[pieces[kin, 2]]).all()
    assert (genre[pieces[kin, 1 - answers[kin]]] != genre[pieces[kin, 2]]).all()
    others = [pieces[odd, (answers[odd] + step) % 3] for step in (1, 2)]
    assert (genre[others[0]] == genre[others[1]]).all()
    assert (genre[pieces[odd, answers[odd]]] != genre[others[0]]).all()
    assert ((genre[pieces[same, 0]] == genre[pieces[same, 1]]) == (answers[same] == 0)).all()
    assert (pieces[same, 0] != pieces[same, 1]).all()


def test_what_matches_is_of_the_item_shown_and_hard_ones_are_of_its_genre(dataset: Path, source: Path) -> None:
    movies = read_movies(source, load_catalogue(dataset).items)
    genre = np.stack(list(movies.genres.values())).argmax(0)
    asked = loaded(dataset, "client", "train")[3]
    for task, kinds_of_genre in ((0, 4), (1, 1)):
        of = asked.take(asked.tasks == task)
        shown, offered = of.pieces[:, 0], of.pieces[:, 1:]
        right = offered[torch.arange(len(of)), of.answers]
        assert torch.equal(right[:, 1], shown[:, 1])
        assert (right[:, 0] != shown[:, 0]).all()
        assert all(len(set(genre[row])) == kinds_of_genre for row in offered[..., 1].numpy())


def test_the_same_data_give_the_same_bytes(dataset: Path, source: Path, tmp_path: Path) -> None:
    again = converted(source, tmp_path / "dataset")
    for path in sorted(dataset.rglob("*.safetensors")):
        assert path.read_bytes() == (again / path.relative_to(dataset)).read_bytes(), path
    assert describe(again)["counts"] == {"users": 0, "items": N_MOVIES - 1, "interactions": 0}


def test_a_reader_that_answers_as_it_was_fitted_to_says_nothing_of_a_word(dataset: Path) -> None:
    codebook = Codebook.load(dataset / "questions/codebook.safetensors")
    torch.testing.assert_close(codebook.words @ codebook.words.T, torch.eye(len(codebook.names)), atol=1e-5, rtol=0)
    assert (signs() @ codebook.words.T).abs().max() < 1e-5
    for asked in loaded(dataset, "client", "test"):
        assert bool(((asked.choices[..., 0] == WORD) | (asked.choices[..., 0] == NOTHING)).all())
    with pytest.raises(ConfigError, match="58 words are too many"):
        word_directions(58)


def copied(source: Path, destination: Path, *without: str) -> Path:
    destination.mkdir()
    for path in source.iterdir():
        if path.name not in without:
            (destination / path.name).write_bytes(path.read_bytes())
    return destination


@pytest.mark.parametrize(
    "missing", ["movies.csv", "ratings.csv", "overviews.csv", "image_features.npy", "text_features.npy"]
)
def test_a_missing_file_is_named_and_nothing_is_left(source: Path, tmp_path: Path, missing: str) -> None:
    with pytest.raises(DataError, match=missing):
        converted(copied(source, tmp_path / "raw", missing), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_malformed_file_is_named_with_its_row(source: Path, tmp_path: Path) -> None:
    raw = copied(source, tmp_path / "raw")
    (raw / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,3,good,5\n")
    with pytest.raises(DataError, match=r"ratings\.csv row 1: rating is 'good'"):
        converted(raw, tmp_path / "out")


def test_a_domain_with_too_few_movies_is_named() -> None:
    few = np.arange(8) < 3
    movies = Movies({"War": few, "Drama": ~few}, np.full(8, 2000), np.full(8, 3.0))
    task = Task("attribute", "attribute", "genre", Domain("both", ("War", "Drama")))
    with pytest.raises(DataError, match="attribute/attribute/genre/both/picture: 3 movies for train are War"):
        task.draw(movies, np.ones(8, dtype=bool), "train", 100, {"War": 0, "Drama": 1})


REAL = Path(os.environ.get("TESSERA_DATA", "")) / "ml-latest-small"


@pytest.mark.skipif(not (REAL / "movies.csv").is_file(), reason="TESSERA_DATA has no ml-latest-small")
def test_movielens_has_enough_movies_for_every_task(tmp_path: Path) -> None:
    dataset = converted(REAL, tmp_path / "dataset")
    for group, part in PARTS:
        for asked in loaded(dataset, group, part):
            counts = torch.bincount(asked.tasks, minlength=len(asked.names))
            least = 300 if group == "unseen" else 400  # an unseen task is learnt in a few steps
            assert (counts >= least).all() if part == "train" else (counts == 100).all()
