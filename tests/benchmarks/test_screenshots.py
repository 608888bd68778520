"""The README's pictures come from the demo's own pages."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tessera.benchmarks.screenshots import HEIGHT, WIDTH
from tests.support.pages import browser


@browser
@pytest.mark.integration
@pytest.mark.slow
def test_pictures_are_taken_and_stay_small(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "tessera.benchmarks.screenshots", tmp_path], check=True)
    names = ("operator.png", "person.png", "report.png")
    assert tuple(sorted(path.name for path in tmp_path.iterdir())) == names
    for name in names:
        assert (tmp_path / name).stat().st_size < 100_000
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (WIDTH, HEIGHT)
            assert max(count for count, _ in picture.getcolors()) < 0.97 * WIDTH * HEIGHT, "something is on it"
