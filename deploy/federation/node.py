"""Keeps a device connected to a server, and has its messages answered at once: Tessera's own SuperNode.

It speaks Flower's Fleet API through Flower's own connection. Unlike Flower's SuperNode it starts no process per message, and
runs only what is installed: of an app bundle that a server sends, no code is run.

As a program it takes the options of `flower-supernode` that it needs, and says the same when the server has taken it in.
"""

import argparse
import os
import random
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tessera.common.flower_internals.fleet import FleetConnection, KnownRun, RunOver, connect, head
from tessera.common.utils.atomic_files import read_bytes
from tessera.common.utils.pauses import growing
from tessera.deploy.federation.authority_watch import watch
from tessera.deploy.federation.worker import Workers

FIRST_LOOK, LAST_LOOK = 0.1, 3.0
"""Seconds until the next look for a message after one has come, and at most."""
JITTER = 0.2
"""By which part waits are drawn shorter or longer, so that many devices do not look at the same moments."""
LEAVE = 2.5
"""Seconds a node has to sign off on SIGTERM; a server out of reach does not keep it."""
RUNS = 4
"""Runs that a node knows of at a time, those of the latest messages: it serves one after another."""


def waits() -> Iterator[float]:
    """Seconds until the next look, and the next, while no message comes."""
    for pause in growing(FIRST_LOOK, LAST_LOOK):
        yield pause * random.uniform(1 - JITTER, 1 + JITTER)


def serve(
    fleet: FleetConnection, workers: Workers, node_config: dict[str, str], distrusts: Callable[[], bool]
) -> NoReturn:
    """Answer messages, one at a time, until the connection breaks, this process is told to end, or `distrusts` says between two
    messages that another server is trusted now."""
    runs: dict[int, KnownRun] = {}
    wait = waits()
    while True:
        workers.require()
        if distrusts():
            _say("ca.crt is another one: connecting anew by it")
            _leave(signal.SIGTERM, None)
        if (envelope := fleet.receive()) is None:
            time.sleep(next(wait))
            continue
        wait, asked, began = waits(), head(envelope).metadata, time.monotonic()
        try:
            run = runs.pop(asked.run_id, None) or fleet.know(asked.run_id, node_config, runs.values())
            answer = workers.answer(run, envelope)
            runs[asked.run_id] = answer.run
            for over in list(runs)[:-RUNS]:
                del runs[over]
            seconds = time.monotonic() - began
            fleet.send(answer.reply, seconds)
        except RunOver:
            _say(f"run {asked.run_id} does not go on; its message is left unanswered")
            continue
        _say(f"run {asked.run_id}, round {asked.group_id or '-'}: {asked.message_type}, {seconds:.2f} s")


def main() -> None:
    """Run a node until it is told to end (SIGTERM: it signs off), or the server shuts it out (exit code 1)."""
    parser = argparse.ArgumentParser(prog="tessera node", description=__doc__)
    for name in ("superlink", "root-certificates", "auth-supernode-private-key", "node-config"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--workers", default="", help="name of a warm process that forks workers for several nodes")
    options = parser.parse_args()
    node_config = tomllib.loads(Path(options.node_config).read_text(encoding="utf-8"))
    ca, key = (read_bytes(Path(path)) for path in (options.root_certificates, options.auth_supernode_private_key))
    workers = Workers(options.workers)  # before anything here starts a thread
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        with connect(options.superlink, ca, key) as fleet:
            _say(f"SuperNode ID: {fleet.node}")
            serve(fleet, workers, node_config, watch(Path(options.root_certificates), ca))
    finally:
        workers.close()
    raise SystemExit(1)  # the connection broke, and Flower has said why


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Sign off, but not for long. Flower's connection sends SIGINT to its own process when the server shuts it out."""
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, signal.SIG_IGN)
    code = 0 if number == signal.SIGTERM else 1
    if code:
        _say("the server has shut this device out")
    timer = threading.Timer(LEAVE, os._exit, [code])
    timer.daemon = True
    timer.start()
    raise SystemExit(code)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
