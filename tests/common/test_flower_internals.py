"""What of Flower is not public API is there in the version that is installed, and does what is built on it."""

import zipfile
from io import BytesIO
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from tessera.common.flower_internals.control import app_bundle

PYPROJECT = b"""[project]
name = "app"
version = "1.0.0"
description = "An app."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:client"
"""


def content(bundle: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_an_app_is_bundled_as_flower_bundles_it(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(PYPROJECT)
    theirs = content(build_fab_from_disk(tmp_path))
    rewritten = theirs["pyproject.toml"]  # Flower formats it
    assert content(app_bundle(rewritten)) == theirs
    assert app_bundle(PYPROJECT) == app_bundle(PYPROJECT)
