"""The packages in examples/: installed outside, found by their entry points, trained with, and held to their contract."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.catalogues import small_dataset

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIG = """
name: outside
data: {folder: small}
rounds: 2
views: {dim: 8, id_dim: 8}
evaluation: {every: 2}
"""
CONTRACT = "from tessera.testing import {contract}\n\n\nclass Test{contract}({contract}):\n    name = {name!r}\n"
PACKAGES = {
    "centred_backbone": ("local.backbone", "centred", "BackboneContract"),
    "momentum_strategy": ("strategy", "momentum", "StrategyContract"),
}


def test_outside_packages_are_found_trained_with_and_keep_their_contracts(tmp_path: Path) -> None:
    site, sources = tmp_path / "site", [tmp_path / example for example in PACKAGES]
    for source in sources:
        source.mkdir()
        for path in (EXAMPLES / source.name).iterdir():  # built from a copy, so that nothing is left beside the source
            if path.is_file():
                (source / path.name).write_bytes(path.read_bytes())
        assert len((source / f"{source.name}.py").read_text().splitlines()) <= 40
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", site, *sources], check=True, cwd=tmp_path)
    small_dataset(tmp_path / "data" / "small")
    (tmp_path / "config.yaml").write_text(CONFIG)
    held = [CONTRACT.format(contract=contract, name=name) for _, name, contract in PACKAGES.values()]
    (tmp_path / "test_it.py").write_text("\n\n".join(held))
    environment = os.environ | {"PYTHONPATH": str(site)}
    tessera = Path(sys.executable).with_name("tessera")
    chosen = [part for setting, name, _ in PACKAGES.values() for part in ("--set", f"{setting}={name}")]
    train = [tessera, "train", "config.yaml", "--data", "data", *chosen, "--executor", "inline"]
    for command in (train, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
