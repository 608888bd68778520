"""What tests of processes share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera.common.datasets.demo_shop import write_shop
from tests.support.pages import CHROMIUM


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    write_shop(folder, n_items=80, n_users=24)
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The system's browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()
