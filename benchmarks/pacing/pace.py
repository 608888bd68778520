"""Tells a ServerApp in another process when to do its next round, so that several federations take turns on one machine."""

import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

LOOPBACK = "127.0.0.1"
EMPTY, TRAIN = "empty", "train"
"""Kinds of rounds."""
START_SECONDS, ROUND_SECONDS, LOOK = 120.0, 180.0, 0.5
"""Seconds that a ServerApp has to call, and that a round may take; and between two looks whether its processes still run."""


class PaceError(Exception):
    """A ServerApp does not call, or answer, any more."""


class Pacer:
    """The side that measures: waits for a ServerApp to call, then has it do rounds of a kind.

    `check` is called while it waits, and raises when there is no hope.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._server = socket.create_server((LOOPBACK, 0))
        self.port: int = self._server.getsockname()[1]
        self._connection: Connection | None = None

    def round(self, kind: str) -> float:
        """Have a round done; return its seconds. Raises `PaceError`."""
        connection = self._connection = self._connection or self._called()
        deadline = time.monotonic() + ROUND_SECONDS
        try:
            connection.send_bytes(kind.encode())
            while not connection.poll(LOOK):
                self._check()
                if time.monotonic() > deadline:
                    raise PaceError(f"no answer in {ROUND_SECONDS:g} s")
            return float(connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise PaceError("the ServerApp has ended") from None

    def close(self) -> None:
        """End it: the ServerApp finds its connection closed."""
        self._server.close()
        if self._connection:
            self._connection.close()

    def _called(self) -> Connection:
        deadline = time.monotonic() + START_SECONDS
        self._server.settimeout(LOOK)
        while time.monotonic() < deadline:
            try:
                accepted, _ = self._server.accept()
            except TimeoutError:
                self._check()
            else:
                accepted.setblocking(True)
                return Connection(accepted.detach())
        raise PaceError(f"the ServerApp did not call in {START_SECONDS:g} s")


class Paced:
    """The ServerApp's side: waits for its turn, and times what it does in it."""

    def __init__(self, port: int) -> None:
        self._connection = Connection(socket.create_connection((LOOPBACK, port)).detach())
        self._began = 0.0

    def turn(self) -> str:
        """Wait until a round is asked for; return its kind. Raises `EOFError` when whoever measures is gone."""
        kind = self._connection.recv_bytes().decode()
        self._began = time.monotonic()
        return kind

    def done(self) -> None:
        """Say that the round is done."""
        self._connection.send_bytes(repr(time.monotonic() - self._began).encode())
