"""Notices that a device was given another ca.crt: its node connects anew by that, for gRPC keeps the one it began with."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

LOOK = 3.0
"""Seconds between two looks at the file."""
GRACE = 30.0
"""Seconds for a message in hand; a node that waits for a server it does not trust has none, and is not heard of."""


def watch(path: Path, known: bytes, grace: float = GRACE) -> Callable[[], bool]:
    """Watch a file of certificates, in a thread, for other content than `known`; return what says whether it has changed.

    Who asks should end then. A process that has not after `grace` seconds is told to (SIGTERM).
    """
    changed = threading.Event()

    def look() -> None:
        while not _changed(path, known):
            time.sleep(LOOK)
        changed.set()
        time.sleep(grace)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()
    return changed.is_set


def _changed(path: Path, known: bytes) -> bool:
    """Whether the file holds other certificates, all of them: it may be written just now."""
    try:
        content = path.read_bytes()
        return content != known and bool(x509.load_pem_x509_certificates(content))
    except (OSError, ValueError):
        return False
