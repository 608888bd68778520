"""Certificates and node keys: names, modes, nothing overwritten, and Flower takes them."""

import argparse
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tessera.common.utils.atomic_files import write_bytes
from tessera.deploy.federation.certificates import (
    CertificateError,
    Certificates,
    change_authority,
    check_server,
    make_certificates,
    make_node_key,
    node_public_key,
)


def names(path: Path) -> x509.SubjectAlternativeName:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def tls_server(files: Certificates) -> Iterator[int]:
    """Shakes hands with whoever connects; yields its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.server, files.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_server_certificate_holds_every_name_and_always_this_machine(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, ["server.example", "10.0.0.7", "localhost"], 30)
    found = names(files.server)
    assert found.get_values_for_type(x509.DNSName) == ["localhost", "server.example"]
    addresses = {ip_address(address) for address in ("127.0.0.1", "::1", "10.0.0.7")}
    assert set(found.get_values_for_type(x509.IPAddress)) == addresses


def test_days_are_those_asked_for(tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(make_certificates(tmp_path, [], 30).server.read_bytes())
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)


def test_private_files_are_the_owners_alone(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, [], 30)
    make_node_key(tmp_path / "node.key")
    assert [mode(path) for path in (files.ca_key, files.server_key, tmp_path / "node.key")] == [0o600] * 3
    assert not list(tmp_path.glob(".*.tmp"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, [], 30)
    make_node_key(tmp_path / "node.key")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CertificateError, match="--renew"):
        make_certificates(tmp_path, [], 30)
    files.ca.unlink()
    with pytest.raises(CertificateError, match="exists"):
        make_certificates(tmp_path, [], 30)
    with pytest.raises(CertificateError, match=r"node\.key exists"):
        make_node_key(tmp_path / "node.key")
    assert all(path.read_bytes() == content for path, content in before.items() if path != files.ca)


def test_renewing_keeps_authority_and_names(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, ["old.example"], 30)
    authority, certificate = files.ca.read_bytes(), files.server.read_bytes()
    make_certificates(tmp_path, ["new.example"], 30, renew=True)
    assert files.ca.read_bytes() == authority
    assert files.server.read_bytes() != certificate
    assert names(files.server).get_values_for_type(x509.DNSName) == ["localhost", "old.example", "new.example"]
    with tls_server(files) as port:
        check_server("localhost", port, files.ca)


def test_renewing_needs_the_authority(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="authority"):
        make_certificates(tmp_path, [], 30, renew=True)
    mine, other = make_certificates(tmp_path / "a", [], 30), make_certificates(tmp_path / "b", [], 30)
    mine.ca_key.write_bytes(other.ca_key.read_bytes())
    with pytest.raises(CertificateError, match="not the key"):
        make_certificates(tmp_path / "a", [], 30, renew=True)


@pytest.mark.parametrize("host", ["server.example:9092", "https://server.example", "", "a..b", "two words"])
def test_what_is_no_name_is_refused_before_anything_is_written(host: str, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="neither"):
        make_certificates(tmp_path, [host], 30)
    assert not list(tmp_path.iterdir())


def test_a_server_is_checked_as_a_device_would(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "server", [], 30)
    stranger = make_certificates(tmp_path / "stranger", [], 30)
    with tls_server(files) as port:
        check_server("127.0.0.1", port, files.ca)
        with pytest.raises(CertificateError, match=r"does not prove .* ca\.crt"):
            check_server("127.0.0.1", port, stranger.ca)
        with pytest.raises(CertificateError, match="not a readable certificate"):
            check_server("127.0.0.1", port, files.ca_key)
    with pytest.raises(OSError, match="refused"):
        check_server("127.0.0.1", port, files.ca)


def test_an_expired_certificate_is_said_so_on_both_sides_and_mended_by_renewing(tmp_path: Path) -> None:
    """Devices keep their ca.crt."""
    files = make_certificates(tmp_path / "server", [], 0)
    authority = files.ca.read_bytes()
    time.sleep(1.1)  # certificates end at whole seconds
    with tls_server(files) as port, pytest.raises(CertificateError, match=r"expired; on the server, .* --renew"):
        check_server("localhost", port, files.ca)
    with pytest.raises(CertificateError, match=rf"server\.pem expired on .* {files.folder} --renew"):
        files.require()
    make_certificates(files.folder, [], 1, renew=True)
    files.require()
    with tls_server(files) as port:
        check_server("localhost", port, files.ca)
    assert files.ca.read_bytes() == authority


def test_flower_takes_the_key(tmp_path: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    public = make_node_key(tmp_path / "node.key")
    assert public == tmp_path / "node.key.pub"
    arguments = {"auth_supernode_private_key": str(tmp_path / "node.key"), "auth_supernode_public_key": None}
    pair = _try_setup_client_authentication(argparse.Namespace(**arguments))
    assert pair is not None
    assert isinstance(pair[0].curve, ec.SECP384R1)
    assert try_load_public_key(public) == public_key_to_bytes(pair[1])


def test_a_device_keeps_its_key(tmp_path: Path) -> None:
    public = node_public_key(tmp_path / "node.key").read_bytes()
    private = (tmp_path / "node.key").read_bytes()
    (tmp_path / "node.key.pub").unlink()
    assert node_public_key(tmp_path / "node.key").read_bytes() == public
    assert (tmp_path / "node.key").read_bytes() == private


def test_an_unreadable_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_text("no key")
    with pytest.raises(CertificateError, match=r"node\.key is not a readable"):
        node_public_key(tmp_path / "node.key")


# --- another authority


def shakes(files: Certificates, *authorities: Path) -> list[bool]:
    """Whether devices with these ca.crt take the server, by OpenSSL and, the same, by the gRPC that nodes speak."""
    import grpc

    chain, key = files.server.read_bytes(), files.server_key.read_bytes()
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    server.start()
    taken = []
    try:
        for ca in authorities:
            credentials = grpc.ssl_channel_credentials(ca.read_bytes())
            with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
                ready = grpc.channel_ready_future(channel)
                try:
                    check_server("localhost", port, ca)
                    ready.result(10)
                    taken.append(True)
                except CertificateError:
                    with pytest.raises(grpc.FutureTimeoutError):
                        ready.result(0.3)
                    taken.append(False)
    finally:
        server.stop(0)
    return taken


def test_devices_trust_either_authority_until_the_old_one_is_dropped(tmp_path: Path) -> None:
    """Also over two changes in a row, and a renewal between them; the names stay."""
    files = make_certificates(tmp_path / "server", ["server.example"], 30)
    stranger = make_certificates(tmp_path / "stranger", [], 30)
    copies = [tmp_path / name for name in ("first.crt", "second.crt", "third.crt", "last.crt")]
    copies[0].write_bytes(files.ca.read_bytes())
    change_authority(files.folder, [], 30, drop_old=False)
    copies[1].write_bytes(x509.load_pem_x509_certificates(files.ca.read_bytes())[0].public_bytes(Encoding.PEM))
    assert shakes(files, *copies[:2], files.ca, stranger.ca) == [True, True, True, False]
    make_certificates(files.folder, [], 30, renew=True)
    change_authority(files.folder, ["more.example"], 30, drop_old=False)
    copies[2].write_bytes(files.ca.read_bytes())
    assert shakes(files, *copies[:3], stranger.ca) == [True, True, True, False]
    change_authority(files.folder, [], 30, drop_old=True)
    copies[3].write_bytes(files.ca.read_bytes())
    assert shakes(files, *copies) == [False, False, True, True]
    assert names(files.server).get_values_for_type(x509.DNSName) == ["localhost", "server.example", "more.example"]
    assert mode(files.ca_key) == 0o600


@pytest.mark.parametrize("written", range(4))
def test_a_change_of_authority_cut_off_by_a_kill_can_be_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    files, left = make_certificates(tmp_path / "server", [], 30), [written]
    device = tmp_path / "device.crt"
    device.write_bytes(files.ca.read_bytes())

    def write(path: Path, content: bytes, mode: int = 0o644) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write_bytes(path, content, mode)

    with monkeypatch.context() as patch:
        patch.setattr("tessera.deploy.federation.certificates.write_bytes", write)
        with pytest.raises(KeyboardInterrupt):
            change_authority(files.folder, [], 30, drop_old=False)
    change_authority(files.folder, [], 30, drop_old=False)
    assert shakes(files, device, files.ca) == [True, True]
