"""Draws the masks of secure sums: streams of AES-256-CTR, each under a key of its own that HKDF-SHA256 derives.

A stream's key depends on the secret, on who shares it, on the ask's context, and on the tensor's name, kind and shape; so no
two tensors, asks, tasks or rosters ever share a stream, and AES-CTR may begin at zero.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from tessera.common.secure.encoding import flags, number
from tessera.common.secure.fixed_point import Layout, Words
from tessera.common.secure.keys import derive

_CHUNK = 2**17
"""Bytes that are drawn and added at once: they stay in the processor's cache."""
_ZEROS = bytes(_CHUNK)


def ask_context(task: bytes, tensors: bytes, roster: bytes, present: Sequence[bool], ask: int, layout: Layout) -> bytes:
    """The 32 bytes to which an ask's masks are bound: masks of devices that were told different things do not cancel.

    Args:
        task: The task as it travels.
        tensors: Hash of the tensors that the task works on.
        roster: The roster's hash.
        present: Who of the roster shared its keys.
        ask: The ask's number in its epoch.
        layout: What is added up, with its bounds.
    """
    described = b"".join(spec.describe() + float(spec.bound).hex().encode() + b"\n" for spec in layout)
    parts = (b"tessera secure sum", task, tensors, roster, flags(present), number(ask, 2), described)
    return hashlib.sha256(b"".join(number(len(part), 8) + part for part in parts)).digest()


def add_self_mask(words: Words, layout: Layout, seed: bytes, context: bytes, sign: int) -> None:
    """Add to `words`, or with `sign` -1 take away, the mask that a device draws from a seed of its own."""
    _add(words, layout, seed, b"self mask", context, sign)


def add_pair_mask(
    words: Words, layout: Layout, shared: bytes, pair: tuple[int, int], context: bytes, sign: int
) -> None:
    """Add to, or take from, the words of device pair[0] the mask it has with pair[1], by their places in the roster.

    The first of a roster adds the mask, the other takes it away; `shared` is their X25519 secret.
    """
    label = b"pair mask" + bytes(sorted(pair))
    _add(words, layout, shared, label, context, sign if pair[0] < pair[1] else -sign)


def _add(words: Words, layout: Layout, secret: bytes, label: bytes, context: bytes, sign: int) -> None:
    for spec in layout:
        key = derive(secret, 32, label, context + spec.describe())
        _add_stream(words[spec.name].view(np.uint8), spec.dtype, key, sign)


def _add_stream(
    content: "np.ndarray[tuple[int], np.dtype[np.uint8]]", dtype: "np.dtype[np.unsignedinteger]", key: bytes, sign: int
) -> None:
    encryptor = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    drawn = bytearray(_CHUNK)
    combine = np.add if sign > 0 else np.subtract
    for start in range(0, content.nbytes, _CHUNK):
        part = content[start : start + _CHUNK].view(dtype)
        encryptor.update_into(memoryview(_ZEROS)[: part.nbytes], drawn)
        combine(part, np.frombuffer(drawn, dtype, part.size), out=part)
