"""A converter and an encoder of another installed package: from raw data to a trained round, and Tessera is as it was."""

import os
import subprocess
from pathlib import Path

import pytest

from tessera.common.utils.atomic_files import read_json
from tests.support.commands import TESSERA

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


def tessera(folder: Path, *arguments: object, code: int = 0) -> str:
    """Run a command where the package is installed; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(folder / "site"), "COLUMNS": "200"}
    command = [TESSERA, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_another_packages_converter_and_encoder_do_all_that_ours_do(outside: Path) -> None:
    made = outside / "made"
    assert "a folder of diaries" in tessera(outside, "data", "kinds")
    printed = tessera(outside, "data", "convert", "diary", "raw", made, "--min-user-events", 2)
    assert "made (diary, from raw)" in printed
    assert read_json(made / "dataset.json")["counts"] == {"users": 4, "items": 6, "interactions": 16}
    assert printed == tessera(outside, "data", "describe", made)
    assert "lengths-v1" in tessera(outside, "data", "encode", made, "--model", "lengths")
    refused = tessera(outside, "data", "convert", "diary", "raw", "other", "--min-rating", 2, code=1)
    assert "--min-rating has no effect" in refused

    (outside / "config.yaml").write_text(CONFIG)
    tessera(outside, "train", "config.yaml", "--data", outside)
    converted = read_json(next((outside / "prepared").iterdir()) / "dataset.json")
    assert converted["features"]["text"]["encoder"] == "lengths-v1"
    assert (outside / "runs" / "diaries" / "metrics.jsonl").is_file()
