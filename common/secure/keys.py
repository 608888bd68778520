"""Derives a device's keys for an epoch from one seed, and signs and checks what it announces of them."""

import base64
import hashlib
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tessera.common.errors import SecureSumError

NODE_KEY_FILE = "node.key"
"""In a device's folder: its node's private key, in OpenSSH's format."""
SEED = 16
"""Bytes of every seed that is shared out: what a field element of Shamir's scheme holds."""
KEY = 32
"""Bytes of a public X25519 or Ed25519 key."""
NODE_KEY = 49
"""Bytes of a node's public key: a compressed point of P-384."""
SIGNATURE = 96
"""Bytes of a node's signature: r and s."""
EPOCH_SIGNATURE = 64
"""Bytes of a signature by a device's key of an epoch."""
_DOMAIN = b"tessera secure sums, version 1: "


def derive(secret: bytes, size: int, label: bytes, context: bytes = b"") -> bytes:
    """HKDF-SHA256 of a secret; `label` says for what, `context` in which place."""
    return HKDF(SHA256(), size, None, _DOMAIN + bytes([len(label)]) + label + context).derive(secret)


@dataclass(frozen=True, repr=False)
class EpochKeys:
    """All secrets of a device in one epoch. Everything follows from `seed`; no two asks share a key."""

    seed: bytes

    @classmethod
    def draw(cls) -> "EpochKeys":
        """New keys, from the operating system's randomness."""
        return cls(os.urandom(SEED))

    def __repr__(self) -> str:
        return "EpochKeys(hidden)"

    def ask_seed(self, ask: int) -> bytes:
        """The 16 bytes behind an ask's X25519 key: these are what is shared out."""
        return derive(self.seed, SEED, b"ask key", ask.to_bytes(2, "little"))

    def self_mask_seed(self, ask: int) -> bytes:
        """b_t: the 16 bytes from which the device's own mask of an ask is drawn."""
        return derive(self.seed, SEED, b"self mask seed", ask.to_bytes(2, "little"))

    def envelope_key(self) -> X25519PrivateKey:
        """What envelopes to this device are sealed with."""
        return X25519PrivateKey.from_private_bytes(derive(self.seed, KEY, b"envelope key"))

    def signing_key(self) -> Ed25519PrivateKey:
        """What the device signs with in the epoch, so that its node key is needed once."""
        return Ed25519PrivateKey.from_private_bytes(derive(self.seed, KEY, b"signing key"))


def ask_key(seed: bytes) -> X25519PrivateKey:
    """sk_t, from an ask's seed."""
    return X25519PrivateKey.from_private_bytes(derive(seed, KEY, b"x25519"))


def public_bytes(key: X25519PrivateKey | Ed25519PrivateKey) -> bytes:
    """The public half of a key."""
    return key.public_key().public_bytes_raw()


def check_value(self_mask_seed: bytes) -> bytes:
    """16 bytes by which the server knows a self-mask seed that it put together, and from which nobody can find it."""
    return derive(self_mask_seed, SEED, b"check value")


def agree(own: X25519PrivateKey, other: bytes, who: str) -> bytes:
    """The secret that two devices share. Raises `SecureSumError` for a public key that makes every secret zero."""
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise SecureSumError(f"{who} announced a key with which nobody can agree on a secret") from None


def node_key_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """A node's public key as announcements hold it. Raises `SecureSumError` for a key of another curve."""
    if not isinstance(key.curve, ec.SECP384R1):
        raise SecureSumError(
            f"a node's key is of curve {key.curve.name}; secure sums need P-384, as Tessera makes them"
        )
    return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """A node's public key as `ssh-keygen -l` names it."""
    blob = base64.b64decode(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def node_fingerprint(node: bytes) -> str:
    """The `fingerprint` of a public key as announcements hold it; of bytes that are none, a hash that no key has."""
    try:
        return fingerprint(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), node))
    except ValueError:
        return f"none:{hashlib.sha256(node).hexdigest()[:12]}"


def sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    """ECDSA with SHA-384 under a node's key; what is signed can be nothing but a part of a secure sum."""
    r, s = decode_dss_signature(key.sign(_DOMAIN + content, ec.ECDSA(SHA384())))
    return r.to_bytes(SIGNATURE // 2, "big") + s.to_bytes(SIGNATURE // 2, "big")


def is_signed(node: bytes, content: bytes, signature: bytes) -> bool:
    """Whether the node whose public key is `node` signed `content`."""
    r, s = (int.from_bytes(half, "big") for half in (signature[: SIGNATURE // 2], signature[SIGNATURE // 2 :]))
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), node)
        key.verify(encode_dss_signature(r, s), _DOMAIN + content, ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def sign_in_epoch(key: Ed25519PrivateKey, content: bytes) -> bytes:
    """Ed25519 under a device's key of an epoch."""
    return key.sign(_DOMAIN + content)


def is_signed_in_epoch(signing: bytes, content: bytes, signature: bytes) -> bool:
    """Whether the device whose key of the epoch is `signing` signed `content`."""
    try:
        Ed25519PublicKey.from_public_bytes(signing).verify(signature, _DOMAIN + content)
    except (InvalidSignature, ValueError):
        return False
    return True
