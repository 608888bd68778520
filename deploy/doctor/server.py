"""Checks a server's folder, its ports, and whether a server at an address proves to be the one it should be."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tessera.common.errors import TesseraError
from tessera.deploy.doctor.device import check_mode
from tessera.deploy.doctor.finding import Finding, ok, problem, warning
from tessera.deploy.federation.certificates import (
    LOCAL_NAMES,
    CertificateError,
    Certificates,
    certificate_names,
    check_server,
)
from tessera.deploy.federation.processes import LOOPBACK
from tessera.deploy.federation.superlink import CONTROL_PORT, PORT, Server
from tessera.deploy.federation.supernode import parse_address

SOON = timedelta(days=30)
"""How long before its end a certificate should be renewed."""
ANYWHERE = ("0.0.0.0", "::")


def check_server_folder(folder: Path) -> Iterator[Finding]:
    """Check the folder of a server: its certificates and their keys, and its ports on this machine."""
    files = Certificates(folder)
    missing = [path.name for path in (files.ca, files.server, files.server_key) if not path.is_file()]
    if missing:
        found = f"{folder} lacks {', '.join(missing)}"
        yield problem("certificates", found, f"make them: tessera federate certificates {folder} --host NAME")
        return
    yield from _certificates(files)
    yield from _ports(folder)


def check_address(address: str, ca: Path) -> Finding:
    """Whether a server answers at `address` and proves itself to `ca`. Raises `RunError` for what is no HOST:PORT."""
    host, port = parse_address(address)
    try:
        authority = _authority(ca)
        if authority.remedy:
            return authority
        check_server(host, port, ca)
    except CertificateError as error:
        found, _, remedy = str(error).removeprefix("certificates: ").partition("; ")
        return problem("server", found, remedy or "take ca.crt from the server's folder")
    except OSError as error:
        remedy = "start the server there (tessera federate server); is the name right, and the port open in firewalls?"
        return problem("server", f"{address} does not answer: {error}", remedy)
    return ok("server", f"{address} answers, and proves to be the server of {ca}")


def _authority(path: Path) -> Finding:
    remedy = "make a new authority in an empty folder (tessera federate certificates) and give every device its ca.crt"
    try:
        return _validity(path, x509.load_pem_x509_certificate(path.read_bytes()), remedy)
    except (OSError, ValueError) as error:
        return problem("certificates", f"{path} is not a readable certificate: {error}", "take the server's ca.crt")


def _certificates(files: Certificates) -> Iterator[Finding]:
    renew = f"sign a new one (tessera federate certificates {files.folder} --renew) and restart the server"
    authority = _authority(files.ca)
    yield authority
    try:
        certificate = x509.load_pem_x509_certificate(files.server.read_bytes())
    except (OSError, ValueError) as error:
        yield problem("certificates", f"{files.server} is not a readable certificate: {error}", renew)
        return
    yield _validity(files.server, certificate, renew)
    yield _match(files, certificate, renew)
    yield _names(files, renew)
    for key in (files.server_key, files.ca_key):
        if key.exists():  # the authority's may be kept elsewhere
            yield check_mode("certificates", key)


def _validity(path: Path, certificate: x509.Certificate, remedy: str) -> Finding:
    """How long a certificate is valid still."""
    start, end, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, datetime.now(UTC)
    if end < now:
        return problem("certificates", f"{path} expired on {end:%Y-%m-%d}", remedy)
    if start > now:
        return problem(
            "certificates", f"{path} is valid from {start:%Y-%m-%d %H:%M} UTC on", "set this machine's clock"
        )
    found = f"{path} is valid until {end:%Y-%m-%d}"
    return warning("certificates", found, remedy) if end < now + SOON else ok("certificates", found)


def _match(files: Certificates, certificate: x509.Certificate, renew: str) -> Finding:
    """Whether the server's certificate is of its key, and of the authority that devices know."""
    try:
        key = load_pem_private_key(files.server_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        return problem("certificates", f"{files.server_key} is not a readable key: {error}", renew)
    if key.public_key() != certificate.public_key():
        return problem("certificates", f"{files.server_key} is not the key of {files.server.name}", renew)
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(files.ca.read_bytes()))
    except (ValueError, TypeError, InvalidSignature):
        return problem("certificates", f"{files.server} was not signed by {files.ca.name}", renew)
    return ok("certificates", f"{files.server.name} fits its key and was signed by {files.ca.name}")


def _names(files: Certificates, renew: str) -> Finding:
    """By which names and addresses devices can reach the server."""
    names = certificate_names(files.server)
    if set(names) <= set(LOCAL_NAMES):
        remedy = f"for devices on other machines, add --host NAME: {renew}"
        return warning("certificates", f"only this machine can reach the server: {', '.join(names)}", remedy)
    return ok("certificates", f"devices reach the server as {', '.join(n for n in names if n not in LOCAL_NAMES)}")


def _ports(folder: Path) -> Iterator[Finding]:
    """The server's two ports: its own, free, or held by somebody else."""
    try:
        server = (
            Server.load(folder) if (folder / "server.json").exists() else Server(folder, LOOPBACK, PORT, CONTROL_PORT)
        )
    except (TesseraError, KeyError) as error:
        yield problem("ports", f"{folder / 'server.json'} cannot be read: {error}", "remove it and start the server")
        return
    host = LOOPBACK if server.host in ANYWHERE else server.host
    yield _port(server, host, server.port, "devices", "--port")
    yield _port(server, LOOPBACK, server.control_port, "register and submit", "--control-port")


def _port(server: Server, host: str, port: int, purpose: str, option: str) -> Finding:
    try:
        check_server(host, port, server.certificates.ca)
        return ok("ports", f"port {port} ({purpose}): the server answers")
    except ConnectionRefusedError:
        return ok("ports", f"port {port} ({purpose}) is free: the server does not run")
    except (OSError, CertificateError) as error:
        found = f"port {port} ({purpose}) is held by {_holder(port)}, which does not prove to be this server: {error}"
        return problem("ports", found, f"stop that process, or start the server with {option} and another port")


def _holder(port: int) -> str:
    """Which process listens on a port of this machine, as far as this user may see."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # ended meanwhile, or another user's
            listening = [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
            if any(one.laddr.port == port for one in listening):
                return f"process {process.pid} ({' '.join(process.cmdline())[:80]})"
    return "another process"
