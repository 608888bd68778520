"""A converter and an encoder of another installed package: from raw data to a trained round, and Tessera is as it was."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tessera.common.utils.atomic_files import read_json

CODE = '''
from pathlib import Path

import numpy as np
import polars as pl

from tessera.common.datasets.raw import Options, RawDataset
from tessera.common.registry.converters import ConverterSpec
from tessera.common.registry.encoders import EncoderSpec


def read_diary(source: Path, options: Options) -> RawDataset:
    """One file a user, one line an item."""
    rows = [(path.stem, line, n) for path in sorted(source.glob("*.log")) for n, line in enumerate(path.read_text().split())]
    events = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    items = pl.DataFrame({"item": sorted(set(events["item"]))})
    items = items.with_columns(title=pl.col("item"), text=pl.lit(""), image=pl.lit(""))
    return RawDataset(events, source, source.name, items)


class Lengths:
    """How long a text is."""

    image_name = text_name = "lengths-v1"
    weights = {}

    def encode_images(self, paths):
        return np.zeros((len(paths), 2), dtype=np.float32)

    def encode_texts(self, texts):
        return np.array([[len(text), text.count("1")] for text in texts], dtype=np.float32)


DIARY = ConverterSpec("a folder of diaries, USER.log", "tessera_diary:read_diary", ("min_user_events", "encode"))
LENGTHS = EncoderSpec("lengths of texts", "tessera_diary:Lengths")
'''
ENTRIES = "[tessera.converters]\ndiary = tessera_diary:DIARY\n[tessera.encoders]\nlengths = tessera_diary:LENGTHS\n"
CONFIG = """
name: diaries
data: {folder: raw, kind: diary, min_user_events: 3, encode: lengths}
rounds: 1
views: {dim: 4, id_dim: 4}
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with the package, as pip would lay it out, and raw data of its kind."""
    site = tmp_path / "site"
    info = site / "tessera_diary-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "tessera_diary.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tessera-diary\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    (tmp_path / "raw").mkdir()
    for user in range(4):
        items = [f"item-{(user + n) % 6}" for n in range(4)]
        (tmp_path / "raw" / f"user-{user}.log").write_text("\n".join(items))
    return tmp_path


PROGRAM = """
import contextlib, io, json, sys
from tessera.deploy.cli.main import main
for arguments in json.load(sys.stdin):
    said, code = io.StringIO(), 0
    sys.argv = ["tessera", *arguments]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, said.getvalue()]))
"""


def tessera(folder: Path, *commands: Sequence[object]) -> list[tuple[int, str]]:
    """Carry commands out, one after the other, in a process where the package is installed; their codes and what they said."""
    environment = os.environ | {"PYTHONPATH": str(folder / "site"), "COLUMNS": "200"}
    asked = json.dumps([[str(argument) for argument in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=asked,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_another_packages_converter_and_encoder_do_all_that_ours_do(outside: Path) -> None:
    made = outside / "made"
    (outside / "config.yaml").write_text(CONFIG)
    kinds, converted, described, encoded, refused, trained = tessera(
        outside,
        ("data", "kinds"),
        ("data", "convert", "diary", "raw", made, "--min-user-events", 2),
        ("data", "describe", made),
        ("data", "encode", made, "--model", "lengths"),
        ("data", "convert", "diary", "raw", "other", "--min-rating", 2),
        ("train", "config.yaml", "--data", outside),
    )
    assert [code for code, _ in (kinds, converted, described, encoded, refused, trained)] == [0, 0, 0, 0, 1, 0]
    assert "a folder of diaries" in kinds[1]
    assert "made (diary, from raw)" in converted[1]
    assert read_json(made / "dataset.json")["counts"] == {"users": 4, "items": 6, "interactions": 16}
    assert converted == described
    assert "lengths-v1" in encoded[1]
    assert "--min-rating has no effect" in refused[1]
    prepared = read_json(next((outside / "prepared").iterdir()) / "dataset.json")
    assert prepared["features"]["text"]["encoder"] == "lengths-v1"
    assert (outside / "runs" / "diaries" / "metrics.jsonl").is_file()
