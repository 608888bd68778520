"""What tests of processes share."""

from pathlib import Path

import pytest

from tessera.common.datasets.demo_shop import write_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    write_shop(folder, n_items=80, n_users=24)
    return folder
