"""The demo shop: deterministic, real files, and a ground truth that the data bear out."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image

from tessera.common.data.catalogue import Catalogue, load_catalogue
from tessera.common.data.interactions import Interactions, load_interactions
from tessera.common.datasets import Options, convert, convert_shop, describe
from tessera.common.datasets.demo_shop import EVENTS
from tessera.common.errors import DataError

N_ITEMS, N_USERS = 800, 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "shop"
    convert_shop(folder, N_ITEMS, N_USERS, seed=3)
    return folder


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> Catalogue:
    return load_catalogue(folder)


@pytest.fixture(scope="module")
def interactions(folder: Path) -> Interactions:
    return load_interactions(folder, N_ITEMS)


@pytest.fixture(scope="module")
def reliance(folder: Path) -> NDArray[np.float64]:
    """Reliance on image, text and crowd, [n_users, 3]."""
    return pl.read_parquet(folder / "users.parquet").drop("user").to_numpy()


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_files_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("shop", 1), ("again/shop", 1), ("other/shop", 2)):
        convert_shop(tmp_path / name, 100, 12, seed)
    same, other = contents(tmp_path / "again" / "shop"), contents(tmp_path / "other" / "shop")
    assert contents(tmp_path / "shop") == same
    assert {name for name in same if same[name] == other[name]} == set()


def test_a_run_takes_the_seed_from_its_settings(tmp_path: Path) -> None:
    about = convert("shop", Path("-"), tmp_path / "shop", Options(shop_seed=5))
    assert (about["seed"], about["kind"], about["filters"]) == (5, "shop", {})


def test_items_have_pictures_and_words_of_their_own(folder: Path, catalogue: Catalogue) -> None:
    assert len(catalogue) == N_ITEMS
    assert all(catalogue.titles)
    assert all(catalogue.texts)
    assert len({(folder / image).read_bytes() for image in catalogue.images}) == N_ITEMS
    assert {Image.open(folder / image).size for image in catalogue.images[:20]} == {(64, 64)}
    for features in catalogue.features.values():
        assert features.present.all()


def test_people_buy_different_things_one_after_the_other(interactions: Interactions) -> None:
    lengths = np.diff(interactions.offsets)
    assert (lengths.min(), lengths.max()) == EVENTS
    for user in range(N_USERS):
        rows = slice(interactions.offsets[user], interactions.offsets[user + 1])
        assert len(set(interactions.items[rows].tolist())) == lengths[user]
        assert (np.diff(interactions.timestamps[rows]) > 0).all()


def test_the_truth_is_of_the_users_in_order(
    folder: Path, interactions: Interactions, reliance: NDArray[np.float64]
) -> None:
    assert tuple(pl.read_parquet(folder / "users.parquet")["user"]) == interactions.users
    np.testing.assert_allclose(reliance.sum(axis=1), 1)
    assert (reliance.max(axis=1) > 0.6).mean() > 0.5
    assert reliance.mean(axis=0).min() > 0.25


def test_picture_and_text_say_nothing_about_each_other(catalogue: Catalogue) -> None:
    image, text = (normalised(catalogue.features[name].standardised()) for name in ("image", "text"))
    pairs = np.triu_indices(N_ITEMS, 1)
    assert abs(np.corrcoef((image @ image.T)[pairs], (text @ text.T)[pairs])[0, 1]) < 0.01


def normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def closeness(features: NDArray[np.float32], interactions: Interactions) -> NDArray[np.float64]:
    """Mean cosine between two different items of each user's history, [n_users]."""
    features = normalised(features)
    lengths = np.diff(interactions.offsets)
    sums = np.add.reduceat(features[interactions.items], interactions.offsets[:-1])
    return ((sums**2).sum(axis=1) - lengths) / (lengths * (lengths - 1))


@pytest.mark.parametrize(("column", "modality"), [(0, "image"), (1, "text")])
def test_histories_are_closer_in_what_their_people_go_by(
    catalogue: Catalogue, interactions: Interactions, reliance: NDArray[np.float64], column: int, modality: str
) -> None:
    close = closeness(catalogue.features[modality].standardised(), interactions)
    assert np.corrcoef(close, reliance[:, column])[0, 1] > 0.65
    main = reliance.argmax(axis=1) == column
    assert close[main].mean() > 3 * abs(close[~main].mean())


def hits(scores: NDArray[np.floating], interactions: Interactions, k: int = 50) -> NDArray[np.bool_]:
    """Whether each user's test item is among the k best they have not bought, [n_users]."""
    split = interactions.split()
    users = np.repeat(np.arange(N_USERS), np.diff(split.offsets))
    scores = scores + 1e-9 * np.random.default_rng(0).random(scores.shape)
    scores[users, split.train_items] = scores[np.arange(N_USERS), split.validation.first()] = -np.inf
    target = scores[np.arange(N_USERS), split.test.first()][:, None]
    return (scores > target).sum(axis=1) < k


def history(interactions: Interactions) -> NDArray[np.float64]:
    """Training events as ones, [n_users, n_items]."""
    split = interactions.split()
    ones = np.zeros((N_USERS, N_ITEMS))
    ones[np.repeat(np.arange(N_USERS), np.diff(split.offsets)), split.train_items] = 1
    return ones


def test_taste_beats_popularity_and_reliance_beats_any_one_view(
    catalogue: Catalogue, interactions: Interactions, reliance: NDArray[np.float64]
) -> None:
    bought = history(interactions)
    image, text = (normalised(catalogue.features[name].standardised()) for name in ("image", "text"))
    gram = bought.T @ bought + 50 * np.eye(N_ITEMS)
    inverse = np.linalg.inv(gram)
    ease = bought @ (np.eye(N_ITEMS) - inverse / np.diag(inverse))
    views = [bought @ image @ image.T, bought @ text @ text.T, ease]
    views = [(view - view.mean(axis=1, keepdims=True)) / view.std(axis=1, keepdims=True) for view in views]
    rates = [hits(view, interactions).mean() for view in views]
    popularity = hits(np.tile(bought.sum(axis=0), (N_USERS, 1)), interactions).mean()
    knowing = hits(np.einsum("um,mui->ui", reliance, np.stack(views)), interactions).mean()
    uniform = hits(np.sum(views, axis=0), interactions).mean()
    assert popularity < 0.75 * min(rates)
    assert popularity < 2.5 * 50 / N_ITEMS
    assert knowing > max(*rates, uniform) + 0.03
    assert knowing < 0.9


def test_each_view_serves_those_who_go_by_it(
    catalogue: Catalogue, interactions: Interactions, reliance: NDArray[np.float64]
) -> None:
    bought, main = history(interactions), reliance.argmax(axis=1)
    for column, name in enumerate(("image", "text")):
        features = normalised(catalogue.features[name].standardised())
        hit = hits(bought @ features @ features.T, interactions)
        assert hit[main == column].mean() > 2 * hit[main != column].mean()


def test_describe(folder: Path) -> None:
    about = describe(folder)
    assert about["counts"]["items"] == N_ITEMS
    assert about["events_per_user"][0] >= EVENTS[0]
    assert about["split"]["cold_targets"] < 0.05
    assert about["features"]["image"]["encoder"] == "colour-and-gradient-histograms-v1"
    assert about["features"]["text"]["encoder"] == "hashed-ngrams-v1"


def test_a_shop_without_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 80 items and 1 user, not 20 and 5"):
        convert_shop(tmp_path / "shop", 20, 5)
    assert not list(tmp_path.iterdir())


def test_a_killed_conversion_leaves_no_dataset(tmp_path: Path) -> None:
    code = "import sys, pathlib, tessera.common.datasets as d; d.convert_shop(pathlib.Path(sys.argv[1]) / 's')"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob(".s.*/images/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    assert list(tmp_path.glob(".s.*/images/*"))
    assert not (tmp_path / "s").exists()
    convert_shop(tmp_path / "s", 100, 5)
    assert describe(tmp_path / "s")["counts"]["users"] == 5
