"""The catalogue in memory and on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tessera.common.data.catalogue import Catalogue, Features, load_catalogue, save_items
from tessera.common.errors import DataError

PRESENT = np.array([True, False, True])


def features(dtype: type = np.float32) -> Features:
    return Features(np.array([[1, 2], [9, 9], [3, 6]], dtype=dtype), PRESENT, "some-encoder")


def catalogue(**modalities: Features) -> Catalogue:
    return Catalogue(("a", "b", "c"), ("A", "", "C"), ("", "text", ""), ("", "", "images/c.png"), modalities)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_saved_is_loaded(tmp_path: Path, dtype: type) -> None:
    saved = catalogue(image=features(dtype))
    saved.save(tmp_path)
    loaded = load_catalogue(tmp_path)
    assert (loaded.items, loaded.titles, loaded.texts, loaded.images) == (
        saved.items,
        saved.titles,
        saved.texts,
        saved.images,
    )
    assert loaded.sha256 == saved.sha256
    image = loaded.features["image"]
    assert image.values.dtype == dtype
    assert image.encoder == "some-encoder"
    assert image.sha256 == saved.features["image"].sha256
    np.testing.assert_array_equal(image.values, saved.features["image"].values)


def test_a_device_gets_items_without_features(tmp_path: Path) -> None:
    save_items(catalogue(image=features()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["items.parquet"]
    assert load_catalogue(tmp_path, modalities=False).titles == ("A", "", "C")


def test_missing_features_are_the_mean_of_those_present() -> None:
    np.testing.assert_allclose(features().imputed(), [[1, 2], [2, 4], [3, 6]])


def test_standardised_features_are_centred_with_one_scale() -> None:
    values = np.random.default_rng(0).normal([5, -1, 0], [1, 10, 0.1], (50, 3)).astype(np.float32)
    standardised = Features(values, np.ones(50, dtype=bool), "x").standardised()
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-5)
    assert (standardised**2).sum(axis=1).mean() == pytest.approx(3, rel=1e-4)
    ratio = standardised.std(axis=0) / values.std(axis=0)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_constant_features_standardise_to_zero() -> None:
    constant = Features(np.full((4, 2), 3, dtype=np.float32), np.ones(4, dtype=bool), "x")
    np.testing.assert_array_equal(constant.standardised(), 0)


def test_take_keeps_order_and_features() -> None:
    taken = catalogue(image=features()).take(np.array([2, 0]))
    assert taken.items == ("c", "a")
    np.testing.assert_array_equal(taken.features["image"].values, [[3, 6], [1, 2]])
    assert len(taken) == 2


def test_a_row_that_is_not_finite_is_named_only_where_present() -> None:
    values = np.array([[1, 2], [np.nan, 0], [np.inf, 1]], dtype=np.float32)
    with pytest.raises(DataError, match="row 2"):
        Features(values, PRESENT, "x")
    Features(values[:2], PRESENT[:2], "x")


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        Features(np.zeros((3, 2), dtype=np.float32), np.ones(2, dtype=bool), "x")
    with pytest.raises(DataError, match="the features by x have no numbers"):
        Features(np.zeros((2, 0), dtype=np.float32), np.ones(2, dtype=bool), "x")
    with pytest.raises(DataError, match="2 titles do not fit 1 items"):
        Catalogue(("a",), ("A", "B"), ("",), ("",))
    with pytest.raises(DataError, match="'image' do not fit 1 items"):
        Catalogue(("a",), ("A",), ("",), ("",), {"image": features()})


def test_a_duplicate_item_is_named() -> None:
    with pytest.raises(DataError, match="'b' stands twice"):
        Catalogue(("a", "b", "b"), ("",) * 3, ("",) * 3, ("",) * 3)


def test_features_of_no_item_are_an_error() -> None:
    with pytest.raises(DataError, match="no item has features by x"):
        Features(np.zeros((2, 2), dtype=np.float32), np.zeros(2, dtype=bool), "x").imputed()


def test_a_missing_table_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items.parquet does not exist.*tessera data convert"):
        load_catalogue(tmp_path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    pl.DataFrame({"item": ["a"], "title": ["A"], "text": [""]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet has no column 'image'"):
        load_catalogue(tmp_path)


@pytest.mark.parametrize("name", ["items.parquet", "features/image.safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    catalogue(image=features()).save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        load_catalogue(tmp_path)


def test_retired_items_are_saved_and_loaded_and_are_part_of_the_hash(tmp_path: Path) -> None:
    whole = catalogue(image=features())
    retired = replace(whole, retired=np.array([False, True, False]))
    retired.save(tmp_path)
    loaded = load_catalogue(tmp_path)
    np.testing.assert_array_equal(loaded.retired, [False, True, False])
    assert loaded.sha256 == retired.sha256 != whole.sha256
    assert loaded.version.ids == whole.version.ids
    other = replace(whole, retired=np.array([True, False, False]))
    assert other.sha256 not in (whole.sha256, retired.sha256)
    nothing = replace(whole, retired=np.zeros(3, dtype=bool))
    assert nothing.retired is None
    assert nothing.sha256 == whole.sha256
    with pytest.raises(DataError, match="2 marks of retired items do not fit 3"):
        replace(whole, retired=np.zeros(2, dtype=bool))


def test_a_catalogue_extends_what_it_begins_with() -> None:
    whole = catalogue()
    first = whole.take(np.array([0, 1]))
    assert whole.extends(first)
    assert whole.extends(whole.version)
    assert whole.extends(replace(first, retired=np.array([True, False])))
    assert replace(whole, retired=np.array([True, False, False])).extends(first.version)
    assert not first.extends(whole)
    assert not whole.extends(whole.take(np.array([1, 0])))


def test_a_catalogue_that_grows_keeps_the_standard_of_its_features(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    present = np.arange(50) != 7
    old = Features(values[:30], present[:30], "x")
    grown = Features(values, present, "x", old.own_standard())
    np.testing.assert_array_equal(grown.standardised()[:30], old.standardised())
    np.testing.assert_array_equal(grown.standardised()[7], 0)
    ids = tuple(map(str, range(50)))
    Catalogue(ids, ids, ids, ("",) * 50, {"image": grown}).save(tmp_path)
    loaded = load_catalogue(tmp_path).features["image"]
    np.testing.assert_array_equal(loaded.standardised(), grown.standardised())


def test_a_column_of_retired_items_that_says_no_truth_is_named(tmp_path: Path) -> None:
    save_items(catalogue(), tmp_path)
    frame = pl.read_parquet(tmp_path / "items.parquet")
    frame.with_columns(retired=pl.lit("no")).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet: column 'retired' holds String"):
        load_catalogue(tmp_path)
