"""Texts with and without a byte-order mark, line ends of every system, and lines that end where a line ends."""

import json
from pathlib import Path

import pytest

from tessera.common.config.loading import load_settings
from tessera.common.config.yaml_text import DuplicateKeyError, load_yaml
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.csv_files import CsvFile, check_text, text_lines
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import Options, convert
from tessera.common.errors import ConfigError, DataError

MARK = "\ufeff"


def converted(kind: str, source: Path, out: Path) -> list[tuple[str, str]]:
    convert(kind, source, out, Options(0, 0))
    items = load_catalogue(out).items
    return [(user, items[item]) for user, item, _ in load_interactions(out, len(items)).frame().rows()]


@pytest.mark.parametrize("mark", ["", MARK])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_is_no_letter(tmp_path: Path, mark: str, end: str) -> None:
    for folder in ("lines", "amazon", "nine"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lines" / "x.txt").write_text(f"{mark}1 a b\u2028c d\n2 a e\n", newline=end)
    assert converted("sequences", tmp_path / "lines", tmp_path / "1")[:2] == [("1", "a"), ("1", "b\u2028c")]
    review = {"user_id": "U", "parent_asin": "B", "asin": "B", "rating": 5.0, "timestamp": 1}
    (tmp_path / "amazon" / "reviews.jsonl").write_text(mark + json.dumps(review) + "\n", newline=end)
    (tmp_path / "amazon" / "meta.jsonl").write_text(mark + '{"parent_asin": "B", "title": "a\u2028b"}\n', newline=end)
    assert converted("amazon", tmp_path / "amazon", tmp_path / "2") == [("U", "B")]
    (tmp_path / "nine" / "X_pair.csv").write_text(f"{mark}u,v,1\n", newline=end)
    (tmp_path / "nine" / "X_item.csv").write_text(f"{mark}v,a title,another\n", newline=end)
    assert converted("ninerec", tmp_path / "nine", tmp_path / "3") == [("u", "v")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separator_and_encoding_are_found(tmp_path: Path, encoding: str, separator: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        separator.join(["user", "item"]) + "\n" + separator.join(["é\u2028", '"x\ny"']) + "\n", encoding=encoding
    )
    file = CsvFile.open(path)
    assert (file.columns, file.separator, file.encoding) == (("user", "item"), separator, encoding)
    assert file.scan().collect().rows() == [("é\u2028", "x\ny")]


def test_the_line_that_is_no_text_is_named_beyond_the_first_chunk(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 80 + b"\n" + b"y y\n" * 400_000 + b"\xe9\n")
    with pytest.raises(DataError, match=r"a.txt line 400002 is not UTF-8"):
        check_text(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes("x é".encode()[:-1])
    with pytest.raises(DataError, match=r"a.txt line 1 is not UTF-8"):
        text_lines(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' stands twice, in lines 1 and 3"),
        ("a:\n  b: {c: 1}\n  b: {d: 1}\n", "'b' stands twice, in lines 2 and 3"),
        ("a: [{b: 1, c: {d: 1, d: 2}}]\n", "'d' stands twice, in line 1"),
        ("{a: 1, a: 1}", "'a' stands twice, in line 1: leave one"),
    ],
)
def test_a_key_that_stands_twice_is_refused_at_any_depth(text: str, message: str) -> None:
    with pytest.raises(DuplicateKeyError, match=message):
        load_yaml(text)


def test_what_a_merge_brings_may_be_overridden() -> None:
    assert load_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\n")["y"] == {"a": 3, "b": 2}


def test_settings_with_a_key_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(f"{MARK}name: twice\ndata: {{folder: x}}\nlocal: {{recency: 1}}\nlocal: {{local_epochs: 3}}\n")
    with pytest.raises(ConfigError, match=r"twice.yaml: 'local' stands twice, in lines 3 and 4"):
        load_settings(path)
    path.write_text(f"{MARK}name: twice\ndata: {{folder: x}}\n")
    with pytest.raises(ConfigError, match=r"local=.*'recency' stands twice"):
        load_settings(path, changes=["local={recency: 1, recency: 2}"])
    with pytest.raises(ConfigError, match="rounds is set twice, to 3 and to 4: leave one"):
        load_settings(path, changes=["rounds=3", "rounds=4"])
