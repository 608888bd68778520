"""What a command imports: `tessera --help` need not wait for torch, nor a list of devices for what a round needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.client.people.device import Device
from tessera.deploy.federation.superlink import Server

HEAVY = {"torch", "flwr", "polars", "ray", "peft", "open_clip", "transformers", "torchvision", "pydantic"}
PROGRAM = """
import json, sys
from tessera.deploy.cli.main import main
try:
    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def imported(*arguments: str, cwd: Path) -> set[str]:
    """The top-level packages that a command has imported when it ends."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=cwd, env=os.environ, capture_output=True, text=True, timeout=120)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"]], ids=" ".join)
def test_to_say_what_there_is_nothing_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    assert not imported(*arguments, cwd=tmp_path) & HEAVY


def test_listing_devices_needs_no_torch(tmp_path: Path) -> None:
    Server.local(tmp_path / "server").save()
    loaded = imported("federate", "list", "--dir", "server", cwd=tmp_path)
    assert "cryptography" in loaded
    assert not loaded & (HEAVY - {"flwr"})


def test_training_here_asks_no_server_and_recommending_needs_neither_flower_nor_towers(tmp_path: Path) -> None:
    imported("data", "shop", "shop", "--items", "80", "--users", "20", cwd=tmp_path)
    settings = "name: small\ndata: {folder: shop, kind: converted}\nrounds: 1\nviews: {dim: 8, id_dim: 8}\n"
    (tmp_path / "small.yaml").write_text(settings)
    loaded = imported("train", "small.yaml", "--data", "shop", cwd=tmp_path)
    assert json.loads((tmp_path / "runs" / "small" / "status.json").read_text())["state"] == "completed"
    assert not loaded & {"fastapi", "sqlalchemy"}  # which Flower's grid over HTTP takes along
    user = Device.open(tmp_path / "runs" / "small" / "devices" / "node-0").people()[0].user
    loaded = imported("recommend", "--data-dir", "runs/small/devices/node-0", "--user", user, cwd=tmp_path)
    assert "torch" in loaded
    assert not loaded & {"flwr", "ray", "peft", "open_clip", "transformers", "torchvision"}


def test_a_broken_package_spoils_its_own_command_alone(tmp_path: Path) -> None:
    """It stays in the help, which says what is wrong; a name that two offer belongs to neither, and ours is not taken."""
    (tmp_path / "mine.py").write_text(
        "import typer\napp = typer.Typer()\n\n@app.command()\ndef greet() -> None:\n    print('hi')\n"
    )
    for name, entries in (
        (
            "orchard",
            "broken = no_such:app\ndata.convert = mine:app\ndata.pick = no_such:app\ntwice = mine:app\ngreet = mine:app",
        ),
        ("weeds", "twice = mine:app\ntrain = mine:app"),
    ):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tessera.commands]\n{entries}\n")

    def tessera(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "tessera", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    assert tessera("greet") == (0, "hi\n")
    code, said = tessera("--help")
    assert code == 0
    assert "broken" in said
    assert "orchard cannot be loaded" in " ".join(said.split())
    code, said = tessera("broken", "--any", "thing")
    assert code == 1
    assert "'broken' of the package orchard cannot be loaded: No module named 'no_such'" in said
    assert "offered by the package" in tessera("twice")[1]
    assert "--executor" in tessera("train", "--help")[1]
    code, said = tessera("data", "--help")
    assert code == 0
    assert "Convert" in said
    assert "package orchard cannot be loaded" in tessera("data", "pick")[1]
