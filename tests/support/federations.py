"""A federation of real processes: a server, and devices that are registered with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tessera.deploy.federation.certificates import make_certificates
from tessera.deploy.federation.processes import Process, stop
from tessera.deploy.federation.superlink import Control, Server, start_superlink, wait_until_ready
from tessera.deploy.federation.supernode import public_key, start_supernode


@contextmanager
def federation_of(devices: Sequence[Path], folder: Path) -> Iterator[Server]:
    """Within it a server runs, whose files are below `folder`, and so does a node for each device's folder."""
    server = Server.local(folder / "server")
    make_certificates(server.folder, [], 1)
    processes: list[Process] = [start_superlink(server, server.folder / "server.log")]
    try:
        wait_until_ready(server, processes[0])
        for number, device in enumerate(devices):
            Control(server).register(public_key(device))
            address, ca, home = f"{server.host}:{server.port}", server.certificates.ca, folder / f"home-{number}"
            processes.append(start_supernode(f"node-{number}", device, address, ca, home, home / "node.log"))
        yield server
    finally:
        stop(processes[1:])
        stop(processes[:1])
