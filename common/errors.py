"""The errors a user can do something about: printed as one message, without a traceback."""

from collections.abc import Mapping


class TesseraError(Exception):
    """Something went wrong that the message explains: it names the stage and says what to do next."""


class ConfigError(TesseraError):
    """A setting is unknown or its value does not fit."""


class DataError(TesseraError):
    """A dataset, a device's folder or a private state cannot be used as it is."""


class DamagedError(DataError):
    """A file does not hold what was once written to it."""


class Locked(TesseraError):
    """A device's folder is encrypted, and the key is not here, or it is another one."""


class StorageError(TesseraError):
    """A file cannot be written; what was there before is whole."""


class RoundAbandoned(TesseraError):
    """Too little came back in a round to learn from; the run goes on with the next. `dropped` counts what came, by kind."""

    def __init__(self, reason: str, dropped: Mapping[str, int] | None = None) -> None:
        super().__init__(reason)
        self.dropped = dict(dropped or {})


class RunError(TesseraError):
    """A run cannot go on: the message names the round, and the node where one is to blame."""


class HeldBack(RunError):
    """Devices give no sum that differs by a few people from an earlier one."""


class RunStopped(RunError):
    """Somebody has stopped a run; its checkpoint is there."""


class ProtocolError(TesseraError):
    """The other side speaks another version of the protocol: the message names both."""


class PolicyRefused(TesseraError):
    """A device's owner does not want done what is asked. The message is for the owner; a server hears its `kind` alone."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class SecureSumError(TesseraError):
    """A secure sum cannot be made of what came: the message names the step, and the device where one is to blame."""


class SecureSumRefused(SecureSumError):
    """A device does not do what a secure sum asks of it, because that could tell somebody what its people did, or because it
    has not the keys. A server hears its `kind` alone."""

    kind = "secure-sum"


class NotFiniteError(RunError):
    """Numbers that should be finite are not."""
