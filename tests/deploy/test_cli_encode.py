"""`tessera data encode`, through the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessera.common.datasets import convert_shop
from tessera.common.encoders.towers import KINDS, encoder_path, save_encoder
from tessera.common.errors import TesseraError
from tessera.common.towers.transformer import SIZES
from tessera.deploy.cli.data import app


def run(*arguments: str | Path) -> str:
    """Encode; raise what was raised, return what was printed."""
    result = CliRunner().invoke(app, ["encode", *map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    convert_shop(tmp_path / "shop", 80, 4)
    return tmp_path / "shop"


def test_a_tower_of_ours_encodes_and_is_not_asked_twice(shop: Path, tmp_path: Path) -> None:
    for kind, tower in KINDS.items():
        save_encoder(tower(SIZES["tiny"]), encoder_path(tmp_path / "towers", "tiny", kind), {})
    first = run(shop, "--model", "tiny", "--towers", tmp_path / "towers", "--device", "cpu")
    assert first.count("tower:tiny:") == first.count("encoded") == 2
    assert run(shop, "--model", "tiny", "--towers", tmp_path / "towers").count("as before") == 2
    assert "histograms" in run(shop, "--model", "builtin")


def test_what_is_missing_is_named(shop: Path) -> None:
    with pytest.raises(TesseraError, match=r"towers/tiny/image\.safetensors"):
        run(shop, "--model", "tiny")
    with pytest.raises(TesseraError, match="--pretrained"):
        run(shop, "--model", "ViT-B-32")
    with pytest.raises(TesseraError, match=r"--pretrained has no effect on the encoder tiny: .* it is for open_clip"):
        run(shop, "--model", "tiny", "--pretrained", "weights.pt")
    with pytest.raises(
        TesseraError, match=r"--towers has no effect on the encoder builtin: .* it is for tiny, small, base"
    ):
        run(shop, "--model", "builtin", "--towers", shop)
