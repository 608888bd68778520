"""A way to a server that can be cut: passes TCP connections on to another port of this machine."""

import socket
import threading
from contextlib import suppress

from tessera.deploy.federation.processes import LOOPBACK

CHUNK = 1 << 16


class Forwarder:
    """Listens on a free port of loopback, and passes on what comes to `target`, until it is cut."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, 0
        self._open: list[socket.socket] = []
        self.mend()

    def mend(self) -> None:
        """Pass connections on, at the same port as before."""
        self._listener = socket.create_server((LOOPBACK, self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # it was cut
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection((LOOPBACK, self.target))
                except OSError:  # nobody there: as the server itself would refuse
                    near.close()
                    continue
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(CHUNK):
            sink.sendall(content)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
