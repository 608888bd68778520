"""Takes the README's pictures of the pages, from the pages of the demo as they are: `make screenshots`.

    python -m tessera.benchmarks.screenshots docs/images

trains the demo, and once more without pictures, opens the person's page, the page of the runs and the report in the Chromium of
this machine, and writes person.png, operator.png and report.png, with few colours, so that they stay small.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from PIL import Image

from tessera.common.errors import ConfigError
from tessera.common.utils.atomic_files import storing

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTH, HEIGHT = 1000, 860
COLOURS = 96
DEMO = Path(__file__).parent / "demo.yaml"
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/open\?token=\S+")


def chromium() -> str:
    """This machine's Chromium. Raises `ConfigError` where there is none."""
    if found := shutil.which("chromium") or shutil.which("chromium-browser"):
        return found
    raise ConfigError("this needs Chromium, which this machine does not have: apt-get install chromium")


def command(*words: object) -> list[str]:
    """A command of this installation."""
    return [str(Path(sys.executable).with_name("tessera")), *map(str, words)]


@contextmanager
def page(*words: object, folder: Path) -> Iterator[str]:
    """The address of the page that a command opens, until the block's end."""
    with subprocess.Popen(command(*words), cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            said = process.stdout.readline()
            found = ADDRESS.search(said)
            if found is None:
                raise ConfigError(f"{' '.join(map(str, words))} opened no page: {said}")
            yield found.group()
        finally:
            process.terminate()


def take(browser: "Browser", address: str, out: Path, then: str = "", above: str = "") -> None:
    """Take a picture of what an address shows; `then` is gone to below it, and the element `above` begins the picture."""
    tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
    tab.goto(address)
    if then:
        tab.goto(address.rpartition("/")[0] + then)
    if above:
        tab.locator(above).evaluate("element => scrollTo(0, element.getBoundingClientRect().top - 16)")
    tab.wait_for_timeout(500)  # pictures are loaded as they come into sight
    tab.screenshot(path=out)
    tab.close()
    with Image.open(out) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    with storing(out):
        few.save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Train, open, take."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("out", type=Path, help="folder the pictures are written to")
    out = parser.parse_args().out.resolve()
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        for words in (
            ("demo",),
            ("train", DEMO, "--set", "name=without-pictures", "--set", "views.modalities=[text]"),
            ("report", "runs/demo", "--out", "demo.html"),
        ):
            subprocess.run(command(*words), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        device, shop = "runs/demo/devices/node-0", next(folder.glob("prepared/shop-*"))
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        with page("device", "page", "--data-dir", device, "--pictures", shop, folder=folder) as address:
            take(browser, address, out / "person.png")
        with page("runs", "page", "--runs", "runs", folder=folder) as address:
            take(browser, address, out / "operator.png", then="/?run=demo&run=without-pictures")
        take(browser, (folder / "demo.html").as_uri(), out / "report.png", above="h2:nth-of-type(2)")
        browser.close()


if __name__ == "__main__":
    main()
