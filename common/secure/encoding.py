"""Writes and reads the bytes of secure sums' messages: fixed layouts, little-endian, and one way only to write a message.

Every message begins with four bytes: `TS`, the version of the protocol, and the message's kind.
"""

from collections.abc import Sequence

import numpy as np

from tessera.common.errors import SecureSumError

VERSION = 1
MARK = b"TS"
LONGEST_TEXT = 200
"""Bytes of a run's or a tensor's name."""


def header(kind: int) -> bytes:
    """The first four bytes of a message of this kind."""
    return MARK + bytes([VERSION, kind])


def number(value: int, size: int) -> bytes:
    """An integer that is not negative, in `size` bytes."""
    return value.to_bytes(size, "little")


def text(value: str) -> bytes:
    """A name: one byte for its length, and UTF-8. Raises `SecureSumError` for one that is too long."""
    content = value.encode()
    if len(content) > LONGEST_TEXT:
        raise SecureSumError(f"the name {value[:40]!r}... is longer than {LONGEST_TEXT} bytes: give a shorter one")
    return number(len(content), 1) + content


def flags(values: Sequence[bool]) -> bytes:
    """One bit a value, the first in the lowest bit; the last byte is filled up with zeros."""
    return np.packbits(np.array(values, dtype=bool), bitorder="little").tobytes()


class Reader:
    """Takes a message apart from front to back. Raises `SecureSumError`, which says which message, for what does not fit."""

    def __init__(self, data: bytes, what: str, kind: int) -> None:
        self.data, self.what, self.at = data, what, 0
        start = self.take(4)
        if start[:2] != MARK or start[3] != kind:
            raise self.error("it does not begin as one")
        if start[2] != VERSION:
            raise self.error(
                f"it is of version {start[2]}, this side speaks {VERSION}: install the same Tessera on both"
            )

    def error(self, why: str) -> SecureSumError:
        """What is wrong with the message."""
        return SecureSumError(f"this is no {self.what} of a secure sum: {why}")

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        part = self.data[self.at : self.at + size]
        if len(part) < size:
            raise self.error(f"it ends after {len(self.data)} bytes, in the middle")
        self.at += size
        return part

    def number(self, size: int, least: int, most: int, name: str) -> int:
        """An integer of `size` bytes between `least` and `most`; `name` says in the error which it is."""
        value = int.from_bytes(self.take(size), "little")
        if not least <= value <= most:
            raise self.error(f"{name} is {value}, not {least} to {most}")
        return value

    def text(self) -> str:
        """A name."""
        size = self.number(1, 0, LONGEST_TEXT, "a name's length")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            raise self.error("a name is not UTF-8") from None

    def flags(self, n: int) -> tuple[bool, ...]:
        """`n` bits."""
        bits = np.unpackbits(np.frombuffer(self.take(-(-n // 8)), dtype=np.uint8), bitorder="little")
        if bits[n:].any():
            raise self.error(f"more than {n} flags are set")
        return tuple(map(bool, bits[:n]))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self.data) - self.at)

    def end(self) -> None:
        """Nothing may be left."""
        if self.at != len(self.data):
            raise self.error(f"it has {len(self.data) - self.at} bytes too many")
