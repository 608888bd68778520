"""Checks a machine, a server's folder, a device's folder and the way between them, for `tessera doctor`.

Nothing is changed, and nothing is asked of anybody but the server. Whatever needs torch is imported late, so that a
machine without it can be told so.
"""

from collections.abc import Iterator
from pathlib import Path

from tessera.deploy.doctor.finding import Finding, Level
from tessera.deploy.doctor.machine import computing, disk, memory, packages, python, ray_address

__all__ = ["Finding", "Level", "examine"]


def examine(server: Path | None, device: Path | None, address: str | None, ca: Path | None) -> Iterator[Finding]:
    """Check this machine, then what is given: a server's folder, a device's, and the server at `address` ("HOST:PORT").

    `ca` is the authority's certificate that the server at `address` has to prove itself to. Without the packages that
    Tessera cannot do without, the folders are not looked at. Raises `RunError` when `address` is none.
    """
    essential = [python(), *packages(), computing()]
    yield from essential
    folders = [folder for folder in (server, device) if folder is not None and folder.is_dir()]
    yield from map(disk, folders or [Path()])
    yield memory()
    yield ray_address()
    if any(finding.level is Level.problem for finding in essential):
        return
    from tessera.deploy.doctor.device import check_device
    from tessera.deploy.doctor.server import check_address, check_server_folder

    if server is not None:
        yield from check_server_folder(server)
    if device is not None:
        yield from check_device(device)
    if address is not None and ca is not None:
        yield check_address(address, ca)
