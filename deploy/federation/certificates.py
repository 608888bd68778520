"""Makes and checks the TLS certificates of a federation's server, and the key each device proves its identity with.

Everything is made with `cryptography`: neither openssl nor ssh-keygen need be installed on a device.
"""

import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tessera.common.errors import TesseraError
from tessera.common.utils.atomic_files import PRIVATE, read_bytes, write_bytes

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names every server certificate holds, so that the server's own machine can reach it."""
CA_DAYS = 3650
AUTHORITIES = 8
"""How many newer authorities, one after the other, an authority may vouch for."""
CONNECT_SECONDS = 5.0
CLOCK_SKEW = timedelta(hours=1)
"""How far a device's clock may be behind the machine that signed."""
EXPIRED = 10
"""X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""


class CertificateError(TesseraError):
    """A certificate or a key is missing, unreadable, or would be overwritten."""


@dataclass(frozen=True)
class Certificates:
    """The four files of a server's folder. Devices get `ca` and nothing else."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The authority's certificate, which every device needs."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """The authority's private key, needed only to sign again."""
        return self.folder / "ca.key"

    @property
    def server(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"

    def require(self) -> None:
        """Raise `CertificateError` unless all that a server needs is there, and devices will still take it."""
        for path in (self.ca, self.server, self.server_key):
            if not path.is_file():
                raise CertificateError(
                    f"certificates: {path} does not exist; make it with `tessera federate certificates {self.folder}`"
                )
        renew = f"sign a new one with `tessera federate certificates {self.folder} --renew`; devices keep their ca.crt"
        try:
            end = x509.load_pem_x509_certificate(self.server.read_bytes()).not_valid_after_utc
        except ValueError as error:
            raise CertificateError(f"certificates: {self.server} is not readable ({error}); {renew}") from None
        if end < datetime.now(UTC):
            raise CertificateError(f"certificates: {self.server} expired on {end:%Y-%m-%d}; {renew}")


def make_certificates(folder: Path, hosts: Sequence[str], days: int, *, renew: bool = False) -> Certificates:
    """Make an authority and a server certificate valid for `hosts` and this machine's own names.

    With `renew` the existing authority signs a new server certificate for the names of the old one and `hosts`, so
    that devices keep their `ca.crt`. Raises `CertificateError` rather than overwrite a file without `renew`.
    """
    files = Certificates(folder)
    if renew:
        (authority, authority_key), vouched = _load_authority(files), _vouchers(files)
        hosts = [*certificate_names(files.server), *hosts]
    else:
        _refuse_to_overwrite(files)
        (authority, authority_key), vouched = _make_authority(), []
    key, chain = _make_chain(hosts, days, authority, authority_key, vouched)
    if not renew:
        write_bytes(files.ca_key, _pem(authority_key), PRIVATE)
        write_bytes(files.ca, authority.public_bytes(Encoding.PEM))
    write_bytes(files.server_key, _pem(key), PRIVATE)
    write_bytes(files.server, chain)
    return files


def change_authority(folder: Path, hosts: Sequence[str], days: int, *, drop_old: bool) -> Certificates:
    """Put a new authority in the place of the old one, which vouches for it as long as it is not dropped: the server then shows
    a certificate that devices trust by the old `ca.crt`, by the new one, or by both together, as `ca.crt` holds them now.

    With `drop_old` the old one is left out of `ca.crt` and of what the server shows. Raises `CertificateError`.

    The old authority's private key is overwritten at the very end: after a kill before, the old authority can begin anew.
    """
    files = Certificates(folder)
    old, old_key = _load_authority(files)
    hosts = [*certificate_names(files.server), *hosts]
    authority, authority_key, vouched, trusted = old, old_key, [], [old]
    if not drop_old:
        authority, authority_key = _make_authority()
        vouched, trusted = [_vouch(authority, old, old_key), *_vouchers(files)], [authority, *_all(files.ca)]
    key, chain = _make_chain(hosts, days, authority, authority_key, vouched)
    write_bytes(files.server_key, _pem(key), PRIVATE)
    write_bytes(files.server, chain)
    write_bytes(files.ca, b"".join(one.public_bytes(Encoding.PEM) for one in trusted))
    write_bytes(files.ca_key, _pem(authority_key), PRIVATE)
    return files


def _make_chain(
    hosts: Iterable[str],
    days: int,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    vouched: Iterable[x509.Certificate],
) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A server's new key, and as PEM its certificate, followed by those by which older authorities vouch for its signer."""
    names = [_general_name(host) for host in dict.fromkeys((*LOCAL_NAMES, *hosts))]
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign_server(key.public_key(), names, days, authority, authority_key)
    return key, b"".join(one.public_bytes(Encoding.PEM) for one in (certificate, *vouched))


def make_node_key(path: Path) -> Path:
    """Make a device's EC P-384 key at `path` in OpenSSH's format; return where its public half is, `path` + `.pub`.

    Raises `CertificateError` when there is a key already: a device with a new key is a stranger to the server.
    """
    if path.exists():
        raise CertificateError(f"node key: {path} exists; remove it first if this device is to become a new one")
    key = ec.generate_private_key(ec.SECP384R1())
    write_bytes(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), PRIVATE)
    return _write_public(path, key)


def node_public_key(path: Path) -> Path:
    """Return where the public half of the device's key at `path` is; make the key, or the public half, on first use."""
    if not path.exists():
        return make_node_key(path)
    try:
        key = load_ssh_private_key(read_bytes(path), password=None)
    except (OSError, ValueError) as error:
        raise CertificateError(f"node key: {path} is not a readable OpenSSH private key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"node key: {path} is not an elliptic-curve key; remove it to have one made")
    return _write_public(path, key)


def public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The public half of a device's key in `path`. Raises `CertificateError` where there is none."""
    try:
        if isinstance(key := load_ssh_public_key(path.read_bytes()), ec.EllipticCurvePublicKey):
            return key
    except (OSError, ValueError, UnsupportedAlgorithm):
        pass
    raise CertificateError(
        f"node key: {path} is no device's public key; `tessera federate key` says where a device's is"
    )


def public_pem(path: Path) -> bytes:
    """The public half of a device's key in `path` as PEM. Raises `CertificateError` where there is none."""
    return public_key(path).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def check_server(host: str, port: int, ca: Path, name: str = "") -> None:
    """Shake hands with the server at `host`:`port` as a device would that knows it by `name`, `host` by default.

    Raises `CertificateError` when its certificate was not signed by `ca`, not for that name or not for today, `OSError` when
    nobody answers.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise CertificateError(f"certificates: {ca} is not a readable certificate: {error}") from None
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as plain:
            context.wrap_socket(plain, server_hostname=name or host).close()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == EXPIRED:
            raise CertificateError(
                f"certificates: {host}:{port} shows a certificate that expired; on the server, sign a new one with `tessera "
                "federate certificates SERVER_DIR --renew` and restart it. Devices keep their ca.crt, unless `tessera doctor` "
                "finds that one expired, or this machine's clock wrong"
            ) from None
        raise CertificateError(
            f"certificates: {host}:{port} does not prove to be the server of {ca} ({error.verify_message}); "
            "take ca.crt from the server's folder, and name every host in `tessera federate certificates --host`"
        ) from None
    except ssl.SSLError as error:
        raise CertificateError(
            f"certificates: {host}:{port} does not speak TLS ({error.reason}); check the port"
        ) from None


def _write_public(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    public = path.with_name(path.name + ".pub")
    write_bytes(public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
    return public


def _refuse_to_overwrite(files: Certificates) -> None:
    for path in (files.ca, files.ca_key, files.server, files.server_key):
        if path.exists():
            raise CertificateError(
                f"certificates: {path} exists; --renew signs a new server certificate with the existing authority"
            )


def _load_authority(files: Certificates) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority whose key is here; `ca.crt` may hold older ones too."""
    try:
        certificates = _all(files.ca)
        key = load_pem_private_key(files.ca_key.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise CertificateError(
            f"certificates: the authority in {files.folder} cannot be read ({error}); "
            "make a new one in an empty folder and give devices its ca.crt"
        ) from None
    own = [one for one in certificates if one.public_key() == key.public_key()]
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not own:
        raise CertificateError(f"certificates: {files.ca_key} is not the key of {files.ca}")
    return own[0], key


def _all(path: Path) -> list[x509.Certificate]:
    """All certificates in a file. Raises `OSError` and `ValueError`."""
    return x509.load_pem_x509_certificates(path.read_bytes())


def _vouchers(files: Certificates) -> list[x509.Certificate]:
    """The certificates by which older authorities vouch for the newer ones, as far as they are still good."""
    try:
        shown = _all(files.server)[1:]
    except (OSError, ValueError):
        return []
    return [one for one in shown if one.not_valid_after_utc > datetime.now(UTC)]


def _vouch(authority: x509.Certificate, old: x509.Certificate, old_key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """The old authority's certificate of a new one's key. Raises `CertificateError` where it may sign for none."""
    if not old.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length:
        raise CertificateError(
            "certificates: this authority, of an older Tessera, may not vouch for another; make a new one in an empty folder, "
            "and give devices a ca.crt that holds both"
        )
    key = authority.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    builder = _builder(authority.subject, old.subject, key, CA_DAYS, old.not_valid_after_utc)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=AUTHORITIES), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return builder.sign(old_key, hashes.SHA384())


def certificate_names(certificate: Path) -> list[str]:
    """The names in an existing certificate, none when it is missing or unreadable."""
    try:
        content = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = content.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []
    return [str(name.value) for name in names]


def _general_name(host: str) -> x509.GeneralName:
    """An address or a DNS name as a certificate holds it. Raises `CertificateError` for what is neither."""
    try:
        return x509.IPAddress(ip_address(host.strip("[]")))
    except ValueError:
        pass
    labels = host.removeprefix("*.").split(".")
    if not all(label.replace("-", "").replace("_", "").isalnum() and label.isascii() for label in labels):
        raise CertificateError(f"certificates: {host!r} is neither an IP address nor a DNS name; leave out any port")
    return x509.DNSName(host)


def _make_authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Tessera authority {uuid4().hex[:8]}")])
    builder = _builder(name, name, key.public_key(), CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=AUTHORITIES), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return builder.sign(key, hashes.SHA384()), key


def _sign_server(
    public: ec.EllipticCurvePublicKey,
    names: Iterable[x509.GeneralName],
    days: int,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tessera server")])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = _builder(name, authority.subject, public, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(issuer, critical=False)
    return builder.sign(authority_key, hashes.SHA384())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    days: int,
    latest: datetime = datetime.max.replace(tzinfo=UTC),
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(min(now + timedelta(days=days), latest))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
