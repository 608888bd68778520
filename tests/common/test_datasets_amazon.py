"""The converter of Amazon reviews, on each release, and the paper's counts beside ours."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tessera.common.data.catalogue import Catalogue, load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import Options, convert
from tessera.common.datasets.amazon import NO_PICTURE, plain
from tessera.common.datasets.published_counts import MISSING_TITLE, PAPER_COUNTS, UNTITLED, in_the_paper, verdict
from tessera.common.encoders.builtin import BuiltinEncoder
from tessera.common.errors import DataError
from tessera.deploy.cli.data import app

Records = list[dict[str, Any]]

OLD: Records = [
    {"reviewerID": "ann", "asin": "B2", "overall": 5.0, "unixReviewTime": 30},
    {"reviewerID": "ann", "asin": "B1", "overall": 1, "unixReviewTime": 20},
    {"reviewerID": "ann", "asin": "B2", "overall": 2.0, "unixReviewTime": 10},
    {"reviewerID": "bob", "asin": "B3", "overall": 4.0, "unixReviewTime": 5},
]
NEW: Records = [
    {"user_id": "ann", "parent_asin": "B2", "asin": "X9", "rating": 5.0, "timestamp": 1588615855070},
    {"user_id": "ann", "parent_asin": "B1", "rating": 1.0, "timestamp": 1588615855060},
    {"user_id": "ann", "asin": "B2", "rating": 2.0, "timestamp": 1588615855050},
    {"user_id": "bob", "parent_asin": None, "asin": "B3", "rating": 4.0, "timestamp": 5},
]
META_2014: Records = [
    {"asin": "B1", "title": 'It\'s "one"', "description": "A <b>bold</b>\n one", "imUrl": "u"},
    {"asin": "B2", "imUrl": "u"},
    {"asin": "B3", "title": "Three &amp; more"},
]
META_2018: Records = [
    {"asin": "B1", "title": " One&#39;s ", "description": ["<p>First.</p>", "", "Second."], "imageURL": ["u"]},
    {"asin": "B2", "title": "var x = new Date().getTime();", "description": [], "feature": ["<i>Small</i>", "Red"]},
    {"asin": "B3", "title": "Three", "description": ["Text"], "feature": ["unread"]},
    {"asin": "B1", "title": "Another", "description": []},
]
META_2023: Records = [
    {"parent_asin": "B1", "title": "One", "description": [], "features": ["Soft", "Warm"], "images": [{"large": "u"}]},
    {"parent_asin": "B2", "title": None, "description": ["Two."], "features": []},
    {"parent_asin": "B9", "title": "Unseen", "description": []},
]


def options(**given: Any) -> Options:
    return Options(**{"min_user_events": 0, "min_item_events": 0, **given})


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def as_json(records: Records) -> list[str]:
    return [json.dumps(record) for record in records]


def load(folder: Path) -> tuple[Catalogue, dict[str, list[str]]]:
    """The catalogue, and each user's items, by id, in order."""
    catalogue = load_catalogue(folder)
    frame = load_interactions(folder, len(catalogue)).frame().group_by("user", maintain_order=True).agg("item")
    return catalogue, {user: [catalogue.items[item] for item in items] for user, items in frame.rows()}


def run(source: Path, **filters: Any) -> tuple[dict[str, Any], Catalogue, dict[str, list[str]]]:
    about = convert("amazon", source, source.parent / "out", options(**filters))
    return about, *load(source.parent / "out")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The release of 2018, plain."""
    write(tmp_path / "raw" / "Mugs.json", as_json([{**review, "verified": True} for review in OLD]))
    write(tmp_path / "raw" / "meta_Mugs.json", as_json(META_2018))
    return tmp_path / "raw"


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_2014_with_metadata_in_python_literals(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "raw" / f"reviews_Mugs_5{suffix}", as_json(OLD))
    write(tmp_path / "raw" / f"meta_Mugs{suffix}", [repr(item) for item in META_2014])
    about, catalogue, events = run(tmp_path / "raw")
    assert catalogue.titles == ('It\'s "one"', MISSING_TITLE, "Three & more")
    assert catalogue.texts == ("A bold one", "", "")
    assert events == {"ann": ["B2", "B1"], "bob": ["B3"]}
    assert "the reviews are of Amazon's 2014 release" in about["rules"]
    assert f"{UNTITLED}: 1" in about["rules"]
    assert about["source"] == f"raw/reviews_Mugs_5{suffix}"


def test_2018_cleans_titles_and_texts(source: Path) -> None:
    about, catalogue, events = run(source)
    assert catalogue.items == ("B1", "B2", "B3")
    assert catalogue.titles == ("One's", MISSING_TITLE, "Three")
    assert catalogue.texts == ("First. Second.", "Small Red", "Text")
    assert events == {"ann": ["B2", "B1"], "bob": ["B3"]}
    assert about["dropped"]["repeated"] == 1
    assert "the reviews are of Amazon's 2018 release" in about["rules"]
    assert "lines of metadata that repeat an item, of which the first counts: 1" in about["rules"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_2023_and_items_without_metadata(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "raw" / f"Mugs{suffix}", [*as_json(NEW), "", "  "])
    write(tmp_path / "raw" / f"meta_Mugs{suffix}", as_json(META_2023))
    about, catalogue, events = run(tmp_path / "raw")
    assert catalogue.items == ("B1", "B2", "B3", "B9")
    assert catalogue.titles == ("One", MISSING_TITLE, MISSING_TITLE, "Unseen")
    assert catalogue.texts == ("Soft Warm", "Two.", "", "")
    assert events == {"ann": ["B2", "B1"], "bob": ["B3"]}
    assert about["rules"][-4:-1] == [
        "the reviews are of Amazon's 2023 release",
        "reviewed items without metadata, and so without a title: 1",
        f"{UNTITLED}: 2",
    ]


def test_filters_apply(source: Path) -> None:
    about, catalogue, events = run(source, min_rating=2.0, min_item_events=1)
    assert catalogue.items == ("B2", "B3")
    assert events == {"ann": ["B2"], "bob": ["B3"]}
    assert about["dropped"] == {"below minimum rating": 1, "repeated": 1, "too few events": 0}


def test_without_pictures_there_is_no_image_modality(source: Path, tmp_path: Path) -> None:
    about = convert("amazon", source, tmp_path / "out", options(encode=BuiltinEncoder()))
    assert list(about["features"]) == ["text"]
    assert about["features"]["text"]["missing"] == 0
    assert NO_PICTURE in about["rules"]


def test_pictures_are_taken_up(source: Path, tmp_path: Path) -> None:
    (source / "images").mkdir()
    Image.new("RGB", (9, 9), "red").save(source / "images" / "B2.jpg")
    about = convert("amazon", source, tmp_path / "out", options(images=True, encode=BuiltinEncoder()))
    assert load_catalogue(tmp_path / "out").images == ("", "images/000001.jpg", "")
    assert about["features"]["image"]["missing"] == 2
    assert NO_PICTURE not in about["rules"]


def test_ready_features_are_taken_up(source: Path) -> None:
    for name, ids in (("image", ["B3", "B1"]), ("text", ["B1", "B2", "B3"])):
        np.save(source / f"{name}_features.npy", np.arange(2.0 * len(ids), dtype=np.float32).reshape(-1, 2))
        np.save(source / f"{name}_ids.npy", np.array(ids))
    (source / "encoders.json").write_text('{"image": "CLIP"}')
    about, catalogue, _ = run(source)
    assert {name: (found["encoder"], found["missing"]) for name, found in about["features"].items()} == {
        "image": ("CLIP", 1),
        "text": ("unknown", 0),
    }
    np.testing.assert_array_equal(catalogue.features["image"].values[[0, 2]], [[2, 3], [0, 1]])
    assert NO_PICTURE not in about["rules"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reviewerID": ""}, r"Mugs.json line 2: reviewerID is empty or missing"),
        ({"reviewerID": 7}, r"Mugs.json line 2: reviewerID is 7, not a text"),
        ({"reviewerID": "\ud800"}, r"Mugs.json line 2: reviewerID is '.*', not a text"),
        ({"asin": None}, r"Mugs.json line 2: asin is empty or missing"),
        ({"overall": "5"}, r"Mugs.json line 2: overall is '5', not a number of 64 bits"),
        ({"overall": True}, r"Mugs.json line 2: overall is True, not a number of 64 bits"),
        ({"overall": float("nan")}, r"Mugs.json line 2: overall is nan, not a number of 64 bits"),
        ({"overall": 10**400}, r"Mugs.json line 2: overall is 1000+, not a number of 64 bits"),
        ({"unixReviewTime": 1.5}, r"Mugs.json line 2: unixReviewTime is 1.5, not a whole number"),
        (
            {"unixReviewTime": 2**63},
            r"Mugs.json line 2: unixReviewTime is 9223372036854775808, not a number of 64 bits",
        ),
    ],
)
def test_malformed_reviews_are_refused(source: Path, change: dict[str, Any], message: str) -> None:
    write(source / "Mugs.json", as_json([OLD[0], {**OLD[1], **change}]))
    with pytest.raises(DataError, match=message):
        run(source)
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"asin": "B1", "title": ', r"meta_Mugs.json line 1 is neither JSON nor a Python literal: .*title"),
        ("{'asin': open('x')}", r"meta_Mugs.json line 1 is neither JSON nor a Python literal"),
        ("{" * 100_000, r"meta_Mugs.json line 1 is neither JSON nor a Python literal"),
        ("[" * 100_000, r"meta_Mugs.json line 1 is neither JSON nor a Python literal"),
        ('["asin"]', r"meta_Mugs.json line 1 is not a record"),
        ('{"asin": "", "title": "x"}', r"meta_Mugs.json line 1: parent_asin or asin is empty or missing"),
        ('{"asin": "B1", "title": 5}', r"meta_Mugs.json line 1: title is '5', neither a text nor a list"),
        ('{"asin": "B1", "description": [["x"]]}', r"line 1: description is .*, neither a text nor a list"),
    ],
)
def test_malformed_metadata_is_refused(source: Path, line: str, message: str) -> None:
    write(source / "meta_Mugs.json", [line])
    with pytest.raises(DataError, match=message):
        run(source)


def test_a_review_that_lacks_a_field_names_it(source: Path) -> None:
    write(source / "Mugs.json", as_json([OLD[0], {"reviewerID": "ann", "asin": "B1", "unixReviewTime": 1}]))
    with pytest.raises(DataError, match=r"Mugs.json line 2: overall is missing"):
        run(source)


def test_files_that_cannot_be_read_are_refused(source: Path) -> None:
    (source / "Mugs.json").unlink()
    for content in (gzip.compress(b'{"user_id": 1}' * 99)[:-9], b"no gzip"):
        (source / "Mugs.json.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"Mugs.json.gz is not a readable text file"):
            run(source)
    (source / "Mugs.json.gz").write_bytes(gzip.compress("é".encode("latin-1")))
    with pytest.raises(DataError, match=r"Mugs.json.gz is not a readable text file"):
        run(source)


def test_the_folder_holds_one_file_of_each(source: Path) -> None:
    write(source / "Mugs_5.jsonl", as_json(OLD))
    with pytest.raises(DataError, match=r"has 2 files of reviews \(Mugs.json, Mugs_5.jsonl\): leave one"):
        run(source)
    for name in ("Mugs.json", "Mugs_5.jsonl"):
        (source / name).unlink()
    with pytest.raises(DataError, match=r"has no file of reviews"):
        run(source)
    write(source / "Mugs.json", as_json(OLD))
    (source / "meta_Mugs.json").write_text("")
    with pytest.raises(DataError, match=r"has no file of metadata"):
        run(source)
    with pytest.raises(DataError, match=r"Mugs.json is not a folder"):
        convert("amazon", source / "Mugs.json", source.parent / "out", options())


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a <b>b</b>\n\tc", "a b c"),
        ("x < y & z > w, I <3 U", "x < y & z > w, I <3 U"),
        ("Mother&#39;s &amp; Father&rsquo;s&nbsp;day", "Mother's & Father’s day"),
        ("<style>p {}</style>Hi<br/>there<script>var a = '<b>';</script>", "Hi there"),
        ("a<!-- <b>no</b> -->b<!DOCTYPE x>", "a b"),
        ("half\ud83d of a character", "half of a character"),
        ("kept <script>never closed", "kept"),
        ("<script" * 50_000, ""),
    ],
)
def test_html_is_taken_out(text: str, cleaned: str) -> None:
    assert plain(text)[:60] == cleaned


def described(kind: str, source: str, counts: tuple[int, int, int], *rules: str) -> dict[str, Any]:
    named = dict(zip(("users", "items", "interactions"), counts, strict=True))
    return {"kind": kind, "source": source, "name": "mine", "counts": named, "rules": list(rules)}


@pytest.mark.parametrize(
    ("kind", "source", "name"),
    [
        ("amazon", "raw/All_Beauty.jsonl.gz", "Beauty"),
        ("amazon", "gift-cards-2018/Gift_Cards_5.json", "Cards"),
        ("movielens", "ml-latest-small", "ML"),
        ("fedvlr", "ku", "KU"),
        ("ninerec", "KU/KU_pair.csv", "KU"),
        ("ninerec", "Bili_Dance/Bili_Dance_pair.csv", "Dance"),
        ("ninerec", "x/bili_food_pair.csv", "Food"),
        ("fedvlr", "Bili_Movie", "Movie"),
        ("sequences", "amazon-all-beauty", None),
        ("fedvlr", "kurt", None),
        ("table", "ku", None),
    ],
)
def test_the_papers_datasets_are_told_by_name_and_kind(kind: str, source: str, name: str | None) -> None:
    paper = in_the_paper(described(kind, source, (1, 1, 1)))
    assert (paper and paper.name) == name


def test_the_papers_sparsities_follow_from_its_counts() -> None:
    sparsities = [round(100 * (1 - row.interactions / row.users / row.items), 2) for row in PAPER_COUNTS]
    assert sparsities == [97.19, 95.01, 95.95, 96.95, 99.53, 99.46, 99.72]


def test_the_verdict_is_plain() -> None:
    food, cards = PAPER_COUNTS[5], PAPER_COUNTS[1]
    same = described("ninerec", "bili_food", (5990, 1125, 36482))
    assert verdict(food, same) == "The counts are those of Food in the paper's Table 1."
    more = described("ninerec", "bili_food", (7000, 1125, 36480))
    assert verdict(food, more).endswith(
        "differ from those of Food in the paper's Table 1: +1,010 users, -2 interactions."
    )
    release = "the reviews are of Amazon's {} release"
    other = " The paper's data are others: there, the reviews are of Amazon's 2023 release."
    for year, ending in ((2023, "the paper's Table 1."), (2018, other)):
        assert verdict(cards, described("amazon", "Gift_Cards", (377, 129, 2429), release.format(year))).endswith(
            ending
        )


def printed(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_convert_prints_the_papers_counts(source: Path, tmp_path: Path) -> None:
    least = ("--min-user-events", "0", "--min-item-events", "0")
    assert "Table 1" not in printed("convert", "amazon", source, tmp_path / "mugs", *least)
    text = printed("convert", "amazon", source, tmp_path / "gift-cards", *least)
    assert "Cards in Table 1 of the FedVLR paper" in text
    assert "-375 users, -126 items, -2,426 interactions. The paper's data are others" in text


@pytest.mark.real_data
@pytest.mark.skipif("TESSERA_DATA" not in os.environ, reason="TESSERA_DATA does not name the folder with the real data")
def test_gift_cards_of_2018(tmp_path: Path) -> None:
    source = Path(os.environ["TESSERA_DATA"]) / "gift-cards-2018"
    if not source.exists():
        pytest.skip(f"{source} does not exist")
    about = convert("amazon", source, tmp_path / "all", options())
    assert (about["read"], about["dropped"]["repeated"]) == (2972, 7)
    assert about["counts"] == {"users": 458, "items": 1547, "interactions": 2965}
    about = convert("amazon", source, tmp_path / "core", Options(encode=BuiltinEncoder()))
    assert about["counts"] == {"users": 453, "items": 147, "interactions": 2941}
    assert about["dropped"] == {"below minimum rating": 0, "repeated": 7, "too few events": 24}
    assert {name: found["missing"] for name, found in about["features"].items()} == {"text": 0}
    assert NO_PICTURE in about["rules"]
    catalogue = load_catalogue(tmp_path / "core")
    assert MISSING_TITLE not in catalogue.titles
    assert not any("<" in text or "&#" in text for text in (*catalogue.titles, *catalogue.texts))
    paper = in_the_paper(about)
    assert paper is not None
    assert verdict(paper, about).endswith("there, the reviews are of Amazon's 2023 release.")
