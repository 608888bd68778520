"""The operator's page as an app: it reads what a server and its runs have written, and stops a run where it is asked to."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tessera.common.errors import DataError, RunError, TesseraError
from tessera.deploy.api.federation import Devices, Federation
from tessera.deploy.pages.operator.charts import HEIGHT, WIDTH, charts
from tessera.deploy.pages.reading import FRAGMENT, STATIC, body, failing, templates
from tessera.server.live.run_info import read_runs, runs_in

TICK = 1.0
"""Seconds between two looks at whether anything has changed."""
PAUSE = 5.0
"""Seconds between two questions to the server who is there."""
LIVE = ("metrics.jsonl", "status.json", "standing.json")
"""Files of a run that say how it goes."""
SHOWN = 40
"""Runs that are listed, the newest."""
STOP_SECONDS = 30.0
"""How long a run has to end its round before it is broken off: a browser waits no longer."""


class Source(Protocol):
    """Where runs are."""

    def runs(self) -> dict[str, Path]:
        """The folders of runs by name, the newest first."""

    def devices(self) -> Devices | None:
        """The devices there are; None where nobody answers."""

    federation: Federation | None


class RunsFolder:
    """A folder of runs, without a federation."""

    federation: Federation | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def runs(self) -> dict[str, Path]:
        """All of them."""
        return runs_in(self._folder)

    def devices(self) -> Devices | None:
        """None: there is no server."""
        return None


class ServerFolder:
    """A server's folder: its devices, and the runs that were submitted."""

    def __init__(self, folder: Path) -> None:
        self.federation: Federation | None = Federation(folder)

    def runs(self) -> dict[str, Path]:
        """Those that were submitted."""
        assert self.federation is not None
        return self.federation.run_folders()

    def devices(self) -> Devices | None:
        """Those that the server knows, where it answers."""
        assert self.federation is not None
        with suppress(RunError):
            return self.federation.devices()
        return None


class OperatorPage:
    """The routes, over a `Source`."""

    def __init__(self, source: Source) -> None:
        self._source, self._devices, self._asked = source, source.devices(), time.monotonic()
        self._templates = templates("tessera.deploy.pages.operator", "Tessera: runs", main="now", subject="the runs")
        self._templates.globals.update(width=WIDTH, height=HEIGHT)

    def app(self) -> Starlette:
        """The app, which `tessera.deploy.pages.guard.Guard` is to stand before."""
        routes = [Route("/", self._home), Route("/live", self._live), Mount("/static", StaticFiles(directory=STATIC))]
        if self._source.federation:
            routes.append(Route("/stop", self._stop, methods=["POST"]))
        return Starlette(routes=routes, exception_handlers={TesseraError: failing(self._templates)})

    async def _home(self, request: Request) -> Response:
        chosen = request.query_params.getlist("run")
        part = request.headers.get(FRAGMENT) == "now"
        return await run_in_threadpool(self._page, chosen, request.query_params.get("said", ""), part)

    def _page(self, chosen: list[str], said: str, part: bool) -> Response:
        folders = self._source.runs()
        if strange := [name for name in chosen if name not in folders]:
            raise DataError(f"there is no run {strange[0]!r} here")
        newest = dict(list(folders.items())[:SHOWN])
        overview = self._source.federation.overview() if self._source.federation else None
        runs = overview.runs if overview else read_runs(newest | {name: folders[name] for name in chosen})
        listed = runs[: len(newest)]
        shown = [run for run in runs if run.name in chosen] or listed[:1]
        facts = {
            "overview": overview,
            "runs": listed,
            "shown": shown,
            "names": [run.name for run in shown],
            "charts": charts(begun) if (begun := [run for run in shown if run.config]) else [],
            "query": urlencode([("run", run.name) for run in shown]),
            "said": said,
            "more": max(0, len(folders) - SHOWN),
        }
        return HTMLResponse(self._templates.get_template("now.html" if part else "page.html").render(facts))

    async def _live(self, request: Request) -> Response:
        """Say, as server-sent events, each time that something of the runs has changed."""

        async def events() -> AsyncIterator[str]:
            yield "retry: 2000\n\n"
            before = await run_in_threadpool(self._now)
            while not (request.app.state.server.should_exit or await request.is_disconnected()):
                await asyncio.sleep(TICK)
                if (now := await run_in_threadpool(self._now)) != before:
                    before = now
                    yield "event: changed\ndata: runs\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    def _now(self) -> object:
        """What tells one moment from another: the runs' files and, looked at less often, who is there."""
        if time.monotonic() > self._asked + PAUSE:
            self._devices, self._asked = self._source.devices(), time.monotonic()
        return _version(self._source.runs()), self._devices

    async def _stop(self, request: Request) -> Response:
        name = dict(parse_qsl((await body(request)).decode(errors="replace"))).get("run", "")
        assert self._source.federation is not None
        whole = await run_in_threadpool(self._source.federation.stop, name, STOP_SECONDS)
        how = "with all its rounds" if whole else "in a round, which is lost"
        said = f"{name} is stopped {how}; tessera federate submit --resume goes on with it"
        return RedirectResponse("/?" + urlencode({"run": name, "said": said}), 303)


def _version(folders: dict[str, Path]) -> tuple[object, ...]:
    """What tells one moment of the runs from another."""
    found: list[object] = []
    for folder in list(folders.values())[:SHOWN]:
        for name in LIVE:
            try:
                stat = (folder / name).stat()
            except OSError:
                continue
            found.append((folder, name, stat.st_mtime_ns, stat.st_size))
    return tuple(found)
