"""What the README claims of real data, by the commands it names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not os.environ.get("TESSERA_DATA"), reason="TESSERA_DATA names no folder"),
]


def trained(tmp_path: Path, config: str, *options: str) -> dict:
    command = [str(Path(sys.executable).with_name("tessera")), "train", str(ROOT / "benchmarks" / config), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_movielens_with_the_history_view(tmp_path: Path) -> None:
    figures = trained(tmp_path, "ml-latest-small/fedvlr-history.yaml")
    assert figures["test"]["hr@50"] >= 22
    assert figures["test"]["ndcg@50"] >= 6.5
    assert figures["test"]["hr@50"] > 2 * figures["baselines"]["popularity"]["hr@50"]


def test_ku_tells_warm_from_cold(tmp_path: Path) -> None:
    """KU's test targets are 43 % cold: what ranks unpopular items first wins there, and must be seen to."""
    (tmp_path / "ku.yaml").write_text(
        "name: ku\ndata: {folder: ku, kind: fedvlr, split: given}\nrounds: 3\nviews: {dim: 16, id_dim: 16}\n"
    )
    figures = trained(tmp_path, str(tmp_path / "ku.yaml"))
    assert figures["test_warm"]["users"] + figures["test_cold"]["users"] == 204
    assert figures["test_cold"]["users"] == 88
    assert figures["baselines"]["inverse-popularity"]["hr@50"] > 60 > figures["baselines"]["popularity"]["hr@50"]
