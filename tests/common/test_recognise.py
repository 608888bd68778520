"""Which converter fits raw data, told by what lies there; the command it gives is one that works."""

from pathlib import Path

import pytest

from tessera.common.datasets import Options, convert
from tessera.common.datasets.recognise import recognise
from tessera.common.errors import DataError

REVIEW = '{"user_id": "U", "parent_asin": "B", "rating": 5, "timestamp": 1}\n'
LAYOUTS = {
    "movielens": {"ratings.dat": "1::2::5::3\n"},
    "fedvlr": {"inter.csv": "userID,itemID,timestamp,split_label\n1,0,1,0\n"},
    "recbole": {"x.inter": "user_id:token\titem_id:token\n1\t2\n", "x.item": "item_id:token\n2\n"},
    "ninerec": {"X_pair.csv": "u,v,1\n", "X_item.csv": "v,a,b\n"},
    "amazon": {"m.jsonl": '{"parent_asin": "B"}\n', "r.jsonl": REVIEW},
    "sequences": {"x.txt": "1 a b\n"},
    "table": {"events.csv": "user;item\n1;a\n"},
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_folder_is_recognised_by_what_lies_in_it(tmp_path: Path, kind: str) -> None:
    for name, text in LAYOUTS[kind].items():
        (tmp_path / name).write_text(text)
    (fit,) = recognise(tmp_path)
    assert (fit.kind, fit.options) == (kind, ())
    options = Options() if kind == "fedvlr" else Options(0, 0)
    assert convert(fit.kind, fit.source, tmp_path / "out", options)["counts"]["users"] == 1


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("Customer_ID,sku,date,stars\n1,a,2018-01-01,4\n")
    (fit,) = recognise(tmp_path)
    wanted = "--user-column Customer_ID --item-column sku --timestamp-column date --rating-column stars"
    assert fit.command == f"tessera data convert table {tmp_path / 'log.csv'} DESTINATION {wanted}"


def test_what_is_nothing_known_is_said(tmp_path: Path) -> None:
    assert recognise(tmp_path) == []
    with pytest.raises(DataError, match="does not exist"):
        recognise(tmp_path / "nowhere")
