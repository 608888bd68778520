"""The converter of NineRec's published layout, and of the variants that are accepted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.common.data.catalogue import Catalogue, load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import Options, convert
from tessera.common.datasets.preprocess import UNTIMED_RULE
from tessera.common.datasets.published_counts import MISSING_TITLE, UNTITLED, in_the_paper
from tessera.common.encoders.builtin import BuiltinEncoder
from tessera.common.errors import DataError

PAIRS = "u1,v10,30\nu1,v2,20\nu2,v2,7\nu1,v10,5\n"
ITEMS = 'v2,"韩国电影，《女教师》","Korean Movie, ""The Governess"""\nv10,只有中文,\nv7,,\n'
NO_COVER = "no item has a cover in *_cover or images/, or image features, so there is no image modality"


def options(**given: Any) -> Options:
    return Options(**{"min_user_events": 0, "min_item_events": 0, **given})


def run(source: Path, given: Options = options()) -> tuple[dict[str, Any], Catalogue, dict[str, list[str]]]:
    """Convert; return dataset.json, the catalogue, and each user's items, by id, in order."""
    out = source.parent / "out"
    about = convert("ninerec", source, out, given, overwrite=True)
    catalogue = load_catalogue(out)
    frame = load_interactions(out, len(catalogue)).frame().group_by("user", maintain_order=True).agg("item")
    return about, catalogue, {user: [catalogue.items[item] for item in items] for user, items in frame.rows()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "Bili_Food"
    folder.mkdir()
    (folder / "Bili_Food_pair.csv").write_text(PAIRS)
    (folder / "Bili_Food_item.csv").write_text(ITEMS)
    (folder / "Bili_Food_url.csv").write_text("v2,some address\n")
    return folder


def test_the_published_layout(source: Path) -> None:
    about, catalogue, events = run(source)
    assert catalogue.items == ("v10", "v2", "v7")
    assert catalogue.titles == ("只有中文", 'Korean Movie, "The Governess"', MISSING_TITLE)
    assert catalogue.texts == catalogue.images == ("", "", "")
    assert events == {"u1": ["v10", "v2"], "u2": ["v2"]}
    assert (about["read"], about["dropped"]["repeated"], about["source"]) == (4, 1, "Bili_Food/Bili_Food_pair.csv")
    assert about["rules"][-4:] == [
        "Bili_Food_pair.csv has no header: user, item and timestamp by place",
        "a title is the English one or, without one, the Chinese",
        f"{UNTITLED}: 1",
        NO_COVER,
    ]
    paper = in_the_paper(about)
    assert paper is not None
    assert paper.name == "Food"


@pytest.mark.parametrize(
    "pairs",
    [
        "user_id,item_id,timestamp\n" + PAIRS,
        "\ufeffUser ID,Item ID,Timestamp\r\n" + PAIRS.replace("\n", "\r\n"),
        "timestamp,video_id,rating,user_id\n30,v10,1,u1\n20,v2,1,u1\n7,v2,1,u2\n\n5,v10,1,u1\n",
        "v10,u1,30\nv2,u1,20\nv2,u2,7\nv10,u1,5\n",
        PAIRS,
    ],
)
def test_pairs_with_a_header_and_in_either_order(source: Path, pairs: str) -> None:
    (source / "Bili_Food_pair.csv").write_bytes(pairs.encode())
    about, _, events = run(source)
    assert events == {"u1": ["v10", "v2"], "u2": ["v2"]}
    assert any("no header: item, user" in rule for rule in about["rules"]) == pairs.startswith("v10")


def test_ids_that_are_both_go_by_the_published_order(source: Path) -> None:
    (source / "Bili_Food_pair.csv").write_text("2,10,1\n2,2,2\n10,2,3\n")
    (source / "Bili_Food_item.csv").write_text("2,二,Two\n10,十,Ten\n")
    _, catalogue, events = run(source)
    assert catalogue.titles == ("Two", "Ten")
    assert events == {"2": ["10", "2"], "10": ["2"]}


@pytest.mark.parametrize(
    ("items", "titles"),
    [
        ("item_id,title,title_en\nv2,二,Two\nv10,十,\nv7,,\n", ("十", "Two", MISSING_TITLE)),
        ("Item ID,Text in Chinese,Text in English\nv2,二,Two\nv10,十,Ten\nv7,七, \n", ("Ten", "Two", "七")),
        ("title_en,item\nTwo,v2\nTen,v10\n,v7\n", ("Ten", "Two", MISSING_TITLE)),
        ("v2,二\nv10,十\nv7,\n", ("十", "二", MISSING_TITLE)),
        ("v2\nv10\nv7\n", (MISSING_TITLE,) * 3),
    ],
)
def test_items_with_a_header_or_one_language(source: Path, items: str, titles: tuple[str, ...]) -> None:
    (source / "Bili_Food_item.csv").write_text(items)
    assert run(source)[1].titles == titles


def test_sequences_stand_in_for_missing_timestamps(source: Path) -> None:
    (source / "Bili_Food_pair.csv").write_text("u1,v2\nu1,v10\nu2,v2\n")
    about, _, events = run(source)
    assert (sorted(events["u1"]), events["u2"], about["timed"]) == (["v10", "v2"], ["v2"], False)
    assert UNTIMED_RULE in about["rules"]
    assert run(source, options(in_order=True))[2] == {"u1": ["v2", "v10"], "u2": ["v2"]}
    (source / "Bili_Food_behaviour.tsv").write_text("u1\tv10 v2\nu2\tv2\n")
    about, _, events = run(source)
    assert events == {"u1": ["v10", "v2"], "u2": ["v2"]}
    assert about["source"] == "Bili_Food/Bili_Food_behaviour.tsv"
    (source / "Bili_Food_pair.csv").unlink()
    assert run(source)[2] == events
    (source / "Bili_Food_pair.csv").write_text("u1,v2,1\nu1,v10,2\nu2,v2,1\n")
    assert run(source)[2] == {"u1": ["v2", "v10"], "u2": ["v2"]}


@pytest.mark.parametrize("folder", ["Bili_Food_cover", "images"])
def test_covers(source: Path, folder: str) -> None:
    (source / folder).mkdir()
    Image.new("RGB", (8, 8), "blue").save(source / folder / "v2.jpg")
    about, catalogue, _ = run(source, options(images=True, encode=BuiltinEncoder()))
    assert catalogue.images == ("", "images/000001.jpg", "")
    assert {name: found["missing"] for name, found in about["features"].items()} == {"image": 2, "text": 0}
    assert NO_COVER not in about["rules"]


def test_ready_features_are_taken_up(source: Path) -> None:
    np.save(source / "image_features.npy", np.ones((1, 3), dtype=np.float16))
    np.save(source / "image_ids.npy", np.array(["v7"]))
    about, catalogue, _ = run(source)
    assert catalogue.features["image"].present.tolist() == [False, False, True]
    assert NO_COVER not in about["rules"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("pair", "u1,v2,3\nu1,,4\n", r"Bili_Food_pair.csv line 2: item is empty"),
        ("pair", "u1,v2,3\n\n ,v2,4\n", r"Bili_Food_pair.csv line 3: user is empty"),
        ("pair", "u1,v2,3\nu1,v10\n", r"Bili_Food_pair.csv line 2 has 2 fields, not 3"),
        ("pair", "u1,v2,3,4\n", r"Bili_Food_pair.csv line 1 has 4 fields, not 3"),
        ("pair", "u1,v2,3\nu1,v10,soon\n", r"Bili_Food_pair.csv line 2: timestamp is 'soon', not a whole number"),
        ("pair", "user,item,timestamp\nu1,v2,\n", r"Bili_Food_pair.csv line 2: timestamp is '', not a whole number"),
        ("pair", "item,timestamp\nv2,3\n", r"Bili_Food_pair.csv has no column 'user' \(item, timestamp\)"),
        ("pair", "user,item,item_id\nu,v2,v2\n", r"Bili_Food_pair.csv has more than one column 'item'"),
        ("pair", "u1,v2,3\nu1,v99,4\n", r"user 'u1' has an event with item 'v99', which the items of .*Bili_Food lack"),
        ("pair", "", r"Bili_Food_pair.csv has no column 'user' \(it is empty\)"),
        ("item", "", r"Bili_Food_item.csv has no column 'item' \(it is empty\)"),
        ("item", "v2,二,Two\n,十,Ten\n", r"Bili_Food_item.csv line 2: item is empty"),
        ("item", "v2,二,Two\nv10,十,Ten\nv2,二,Two\n", r"Bili_Food_item.csv line 3: item 'v2' has a line already"),
        ("item", 'v2,"' + "x" * 200_000, r"Bili_Food_item.csv is not a readable CSV file: field larger"),
    ],
)
def test_malformed_tables_are_refused(source: Path, file: str, text: str, message: str) -> None:
    (source / f"Bili_Food_{file}.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        run(source)
    assert not (source.parent / "out").exists()


def test_text_that_is_not_utf8_is_refused(source: Path) -> None:
    (source / "Bili_Food_item.csv").write_bytes("v2,电影,Film\n".encode("gb18030"))
    with pytest.raises(DataError, match=r"Bili_Food_item.csv is not a readable CSV file"):
        run(source)


def test_files_that_are_missing_or_twice_there_are_named(source: Path) -> None:
    (source / "KU_pair.csv").write_text(PAIRS)
    with pytest.raises(DataError, match=r"Bili_Food has Bili_Food_pair.csv, KU_pair.csv: leave one"):
        run(source)
    for path in source.glob("*_pair.csv"):
        path.unlink()
    with pytest.raises(DataError, match=r"has neither \*_pair.csv nor \*_behaviour.tsv"):
        run(source)
    (source / "Bili_Food_item.csv").unlink()
    with pytest.raises(DataError, match=r"has no \*_item.csv"):
        run(source)
