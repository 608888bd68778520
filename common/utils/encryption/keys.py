"""What opens an encrypted folder, and the note in it of how."""

import base64
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tessera.common.errors import ConfigError, DamagedError, Locked
from tessera.common.utils.encryption.seam import KEY_FILE, NOTE, PASSPHRASE

KEY, NONCE, SALT = 32, 12, 16
SHORTEST = 8
"""Characters of a passphrase, at least."""
Kind = Literal["passphrase", "key-file"]
State = Literal["sealing", "sealed", "opening"]
"""How far a folder is: begun, done, or being opened for good."""


@dataclass(frozen=True)
class Secret:
    """A passphrase, or the content of a key file."""

    kind: Kind
    content: bytes

    @classmethod
    def passphrase(cls, text: str) -> "Secret":
        """Raises `ConfigError` for one that is too short."""
        if len(text) < SHORTEST:
            raise ConfigError(f"a passphrase has at least {SHORTEST} characters")
        return cls("passphrase", text.encode())

    @classmethod
    def key_file(cls, path: Path) -> "Secret":
        """Raises `ConfigError` where the file cannot be read, or is too short to be a key."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from None
        if len(content) < KEY:
            raise ConfigError(f"key file {path} holds {len(content)} bytes: a key has {KEY} or more, drawn at random")
        return cls("key-file", content)

    @classmethod
    def of_environment(cls) -> "Secret | None":
        """What environment variables name or hold. Raises `ConfigError` for what cannot be."""
        if name := os.environ.get(KEY_FILE):
            os.environ[KEY_FILE] = str(Path(name).absolute())  # processes that are started elsewhere find it too
            return cls.key_file(Path(name))
        return cls.passphrase(given) if (given := os.environ.get(PASSPHRASE)) else None


class Note(BaseModel):
    """What encryption.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    kind: Kind
    cipher: Literal["aes-256-gcm"] = "aes-256-gcm"
    state: State
    salt: str
    scrypt_n: int = Field(default=1 << 16, ge=1 << 14, le=1 << 20)
    scrypt_r: int = Field(default=8, ge=1, le=32)
    scrypt_p: int = Field(default=2, ge=1, le=16)
    wrapped: str
    """The folder's key, sealed by the secret's; base64."""

    @classmethod
    def read(cls, path: Path) -> "Note":
        """Raises `DamagedError` for what is none."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            raise DamagedError(f"{path} cannot be read: restore it, nothing opens the folder without it") from None

    @classmethod
    def new(cls, secret: Secret) -> "Note":
        """A note of a key that has never been."""
        note = cls(kind=secret.kind, state="sealing", salt=text(secrets.token_bytes(SALT)), wrapped="")
        wrapped = seal(note._by(secret), AESGCM.generate_key(8 * KEY), NOTE)
        return note.model_copy(update={"wrapped": text(wrapped)})

    def key(self, secret: Secret, folder: Path) -> bytes:
        """The folder's key. Raises `Locked` where the secret is another than it was sealed by."""
        if secret.kind != self.kind:
            raise Locked(f"{folder} is encrypted with a {self.kind}, and a {secret.kind} was given")
        try:
            return unseal(self._by(secret), base64.b64decode(self.wrapped, validate=True), NOTE)
        except (InvalidTag, ValueError):
            raise Locked(f"that {self.kind} is not the one that {folder} is encrypted with") from None

    def _by(self, secret: Secret) -> bytes:
        salt = base64.b64decode(self.salt, validate=True)
        if secret.kind == "passphrase":
            return Scrypt(salt, KEY, self.scrypt_n, self.scrypt_r, self.scrypt_p).derive(secret.content)
        return HKDF(SHA256(), KEY, salt, b"tessera key file").derive(secret.content)


def seal(key: bytes, content: bytes, name: str) -> bytes:
    """Encrypt `content` under a nonce of its own, bound to `name`."""
    nonce = secrets.token_bytes(NONCE)
    return nonce + AESGCM(key).encrypt(nonce, content, name.encode())


def unseal(key: bytes, content: bytes, name: str) -> bytes:
    """What was sealed. Raises `InvalidTag` or `ValueError`."""
    return AESGCM(key).decrypt(content[:NONCE], content[NONCE:], name.encode())


def text(content: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(content).decode()
