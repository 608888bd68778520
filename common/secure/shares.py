"""Shares secrets out among a group (Shamir 1979), seals the shares for those they are for, and puts secrets together again.

A secret has 16 bytes, and so has a share of it. Device number i of a roster, from 0, holds the polynomial's value at i + 1.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, islice

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tessera.common.errors import SecureSumError
from tessera.common.secure.keys import derive

SHARE = 16
NONCE, TAG = 12, 16
_TRIES = 100
"""How many choices of shares are tried before a secret is given up."""


def threshold(n: int) -> int:
    """How many of n devices are needed: ceil(2n / 3), so that fewer than a third that collude with the server learn nothing."""
    return -(-2 * n // 3)


def split(secrets: Sequence[bytes], n: int) -> list[bytes]:
    """Share secrets out among n devices: for each device, its share of every secret, one after another."""
    pieces = [Shamir.split(threshold(n), n, secret, False) for secret in secrets]
    return [b"".join(piece[holder][1] for piece in pieces) for holder in range(n)]


def seal(shared: bytes, place: bytes, content: bytes) -> bytes:
    """An envelope of AES-256-GCM: nonce, content, tag. `place` (roster, sender, receiver) is part of key and tag."""
    nonce = os.urandom(NONCE)
    return nonce + AESGCM(derive(shared, 32, b"envelope", place)).encrypt(nonce, content, place)


def unseal(shared: bytes, place: bytes, envelope: bytes) -> bytes | None:
    """What is in an envelope; None when it was not sealed for this place with this secret."""
    try:
        return AESGCM(derive(shared, 32, b"envelope", place)).decrypt(envelope[:NONCE], envelope[NONCE:], place)
    except InvalidTag:
        return None


def reconstruct(
    shares: Mapping[int, bytes], needed: int, fits: Callable[[bytes], bool], what: str
) -> tuple[bytes, set[int]]:
    """Put a secret together from shares by holder; return it, and those holders whose shares are wrong.

    The first `needed` shares are tried first; where their secret does not fit, others in the place of some. `what` names the
    secret in errors. Raises `SecureSumError` when shares are too few, or no choice of them fits.
    """
    if len(shares) < needed:
        raise SecureSumError(f"{what}: {len(shares)} shares came of the {needed} that are needed")
    for chosen in islice(_choices(list(shares), needed), _TRIES):
        if fits(secret := _combine(shares, chosen)):
            return secret, _wrong(shares, chosen, secret)
    raise SecureSumError(f"{what}: of its {len(shares)} shares no {needed} fit together; they are of {sorted(shares)}")


def _choices(holders: list[int], needed: int) -> Iterator[list[int]]:
    """Every `needed` of the holders, those first that leave few out."""
    seen = set()
    for left_out in range(len(holders) - needed + 1):
        for bad in combinations(holders, left_out):
            chosen = [holder for holder in holders if holder not in bad][:needed]
            if tuple(chosen) not in seen:
                seen.add(tuple(chosen))
                yield chosen


def _combine(shares: Mapping[int, bytes], chosen: Sequence[int]) -> bytes:
    return Shamir.combine([(holder + 1, shares[holder]) for holder in chosen], False)


def _wrong(shares: Mapping[int, bytes], chosen: list[int], secret: bytes) -> set[int]:
    """Whose shares are not of the polynomial: looked for only where the first choice did not fit."""
    if chosen == list(shares)[: len(chosen)]:
        return set()
    rest = (holder for holder in shares if holder not in chosen)
    return {holder for holder in rest if _combine(shares, [*chosen[1:], holder]) != secret}
