"""Signs what a server asks with its key, so that devices can prove who told them different things."""

import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tessera.common.protocol.messages import Task
from tessera.common.protocol.signed.keys import signing_key
from tessera.common.protocol.signed.statements import Statement
from tessera.common.protocol.tensors import Tensors


class Signer:
    """What a server signs from when it begins with a run, or goes on with it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.begun = self._sent = time.time_ns() // 1000

    @classmethod
    def of(cls, path: Path) -> "Signer":
        """One with the key at `path`, which is made where there is none. Raises `RunError`, `StorageError`."""
        return cls(signing_key(path))

    def sign(self, task: Task, shared: str, inputs: Tensors, roster: str) -> Statement:
        """What goes along with all messages of an ask; see `Statement.of`."""
        self._sent = max(self._sent + 1, time.time_ns() // 1000)
        return Statement.of(task, shared, inputs, roster, self.begun, self._sent).signed_by(self.key)
