"""Pages as tests open them: the command's own process, a client that holds the cookie, and the system's Chromium."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class Page:
    """A page's process and its address; `web` is a client that holds the cookie, as the page's own tab does."""

    def __init__(self, *command: object) -> None:
        words = [Path(sys.executable).parent / "tessera", *command]
        self.process = subprocess.Popen(
            list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r"http://(127\.0\.0\.1:\d+)/open\?token=\S{43}$", said)
        assert found, said + self.process.stdout.read()
        self.address, self.host = found.group(), found.group(1)
        self.web = httpx.Client(base_url=f"http://{self.host}", headers={"origin": f"http://{self.host}"}, timeout=60)

    def close(self) -> None:
        self.web.close()
        self.process.terminate()
        self.process.wait(30)


@contextlib.contextmanager
def page_of(*command: object) -> Iterator[Page]:
    """The page that a command opens, until the block's end."""
    page = Page(*command)
    try:
        yield page
    finally:
        page.close()


def violations(tab: Any) -> str:
    """What axe has against a page: contrast, labels, order of headings, names of buttons; "" where it has nothing."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab)
    return str(found.generate_report()) if found.violations_count else ""
