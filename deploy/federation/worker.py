"""Works on a node's messages in a process of its own, which may be killed without ending the node.

What an answer costs is mostly imports. So a *warm* process imports the device's app once and, single-threaded for all its life,
forks a worker whenever a node wants one; the worker answers message after message until it is not asked for a while,
and gives back its memory by ending. Only a worker starts threads or uses a GPU. Several nodes on one machine can share a
warm process. Where forking is not safe, as on macOS, the worker is a new process, kept for good.

Between node and worker go plain frames of bytes: protocol buffers and Flower's objects, never pickle. A worker runs the app
that is installed here. Of the app bundle that a server sends it reads the run's default settings, in the worker too.
"""

import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from tessera.common.flower_internals.fleet import (
    APP_CRASHED,
    APP_RAISED,
    Envelope,
    KnownRun,
    error_reply,
    pack,
    read_context,
    unpack,
    write_context,
)
from tessera.common.utils.parent_death import tether
from tessera.deploy.federation.processes import FORKS, Process, module, start

IDLE = 60.0
"""Seconds without a message after which a forked worker ends: what it holds is better given back than kept."""


class NoWorkers(Exception):
    """There can be no workers any more."""


@dataclass(frozen=True)
class Answer:
    """A reply, and what the node knows of the run after it: in `context.state` the app keeps what its next message needs."""

    reply: Envelope
    run: KnownRun


class Workers:
    """The workers of a node, one at a time, forked by the warm process of that name, or by one of its own.

    To be made before the node starts a thread: its own warm process is forked here.
    """

    def __init__(self, warm: str = "") -> None:
        self._to_worker: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._asked, self._name, self._warm = 0.0, warm or new_name(), 0
        if FORKS and not warm:
            listener = _listener(self._name)
            self._warm = os.fork()
            if not self._warm:
                _be_warm(listener)
            listener.close()

    def answer(self, run: KnownRun, envelope: Envelope) -> Answer:
        """Have a message answered. A worker that dies at it costs this message an error reply, and no other."""
        try:
            if not self._ready():
                self._drop()
                self._to_worker, self._asked = self._forked() if FORKS else self._started(), time.monotonic()
            answer = self._ask(run, envelope)
            self._asked = time.monotonic()
            return answer
        except (EOFError, OSError):
            self._drop()
            reason = "the device's worker ended without an answer: it was killed, or had too little memory"
            return Answer(error_reply(envelope, APP_CRASHED, reason), run)

    def close(self) -> None:
        """End the worker and the warm process of one's own, whatever they are doing."""
        self._drop()
        if self._warm:
            with suppress(ProcessLookupError):
                os.kill(self._warm, signal.SIGKILL)  # and with it, its worker
            with suppress(ChildProcessError):
                os.waitpid(self._warm, 0)

    def require(self) -> None:
        """Raise `NoWorkers` where the warm process of one's own has ended."""
        if self._warm and os.waitpid(self._warm, os.WNOHANG)[0]:
            raise NoWorkers("the process that starts workers has ended; what it said last is above")

    def _ready(self) -> bool:
        """Whether there is a worker, which is not about to end: it says nothing unasked but that it has ended."""
        return self._to_worker is not None and not self._to_worker.poll() and time.monotonic() < self._asked + IDLE / 2

    def _ask(self, run: KnownRun, envelope: Envelope) -> Answer:
        assert self._to_worker
        send_frames(self._to_worker, [run.context, run.bundle, *_frames(envelope)])
        context, bundle, *reply = receive_frames(self._to_worker)
        return Answer(_envelope(reply), KnownRun(run.series, context, bundle))

    def _forked(self) -> Connection:
        """A connection to a new worker of the warm process, which is to write where this process does."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(_address(self._name))
            if not _same_user(connection):
                raise ConnectionRefusedError("another user's process answers in place of the warm process")
            socket.send_fds(connection, [b"."], [sys.stderr.fileno()])
            return Connection(connection.detach())

    def _started(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            command = module("worker", "work", str(theirs.fileno()))
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        return Connection(ours.detach())

    def _drop(self) -> None:
        """Let go of the worker: it ends when it finds the node's end closed."""
        if self._to_worker is not None:
            self._to_worker.close()
            self._to_worker = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def new_name() -> str:
    """A name for a warm process that no other has."""
    return f"tessera-{secrets.token_hex(16)}"


def start_warm(home: Path, log: Path) -> tuple[Process, str] | None:
    """Start a warm process for several nodes; return it and its name. None where workers are not forked."""
    if not FORKS:
        return None
    command = module("worker", "warm", name := new_name())
    return start("workers", command, home.absolute(), log), name


def _address(name: str) -> str:
    """Where the warm process of a name listens: in Linux's abstract namespace, so that no file is left behind."""
    return f"\0{name}"


def send_frames(connection: Connection, frames: Sequence[bytes]) -> None:
    """Send several pieces of bytes as one message."""
    connection.send_bytes(len(frames).to_bytes(4, "big"))
    for frame in frames:
        connection.send_bytes(frame)


def receive_frames(connection: Connection) -> list[bytes]:
    """Receive what `send_frames` sent. Raises `EOFError` where the other side has ended."""
    return [connection.recv_bytes() for _ in range(int.from_bytes(connection.recv_bytes(), "big"))]


def work(connection: Connection, idle: float | None = None) -> None:
    """Answer messages until the node is gone, or has asked for nothing in so many `idle` seconds."""
    with suppress(EOFError, OSError):
        while connection.poll(idle):
            context, bundle, *parts = receive_frames(connection)
            answer = _answered(KnownRun(0, context, bundle), _envelope(parts))
            send_frames(connection, [answer.run.context, answer.run.bundle, *_frames(answer.reply)])


def _answered(run: KnownRun, envelope: Envelope) -> Answer:
    """The installed app's answer. What it raises stays here, in the device's own log: it may speak of people."""
    import logging

    from tessera.client.app import app

    try:
        context = read_context(run.context, run.bundle)
        reply = pack(app(unpack(envelope), context))
        return Answer(reply, KnownRun(run.series, write_context(context)))
    except Exception as error:
        logging.getLogger("tessera.device").exception("a message could not be answered")
        reason = f"{type(error).__name__} on the device; its own log says more"
        return Answer(error_reply(envelope, APP_RAISED, reason), run)


def _listener(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(_address(name))
    listener.listen()
    return listener


def _be_warm(listener: socket.socket) -> NoReturn:
    """Import the app, then fork a worker for every connection of the same user's that comes along. Never returns."""
    try:
        tether()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers: the node sees their connection end
        import tessera.client.app  # noqa: F401

        while True:
            connection, _ = listener.accept()
            if _same_user(connection) and not os.fork():
                tether()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _serve(connection)
                break
            connection.close()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _serve(connection: socket.socket) -> None:
    """Work for the node at the other end, and write where that does."""
    said, numbers, _, _ = socket.recv_fds(connection, 1, 1)
    if said:
        for number in (1, 2):
            os.dup2(numbers[0], number)
        os.close(numbers[0])
        work(Connection(connection.detach()), IDLE)


def _same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end is of the same user: anyone may call an address in the abstract namespace."""
    credentials = struct.Struct("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    user: int = credentials.unpack(found)[1]
    return user == os.getuid()


def _frames(envelope: Envelope) -> list[bytes]:
    return [
        envelope.head,
        envelope.tree,
        *(part for item in envelope.objects.items() for part in (item[0].encode(), item[1])),
    ]


def _envelope(frames: Sequence[bytes]) -> Envelope:
    head, tree, *parts = frames
    objects = {name.decode(): content for name, content in zip(parts[::2], parts[1::2], strict=True)}
    return Envelope(head, tree, objects)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        tether()
        work(Connection(int(sys.argv[2])))
    else:
        _be_warm(_listener(sys.argv[2]))
