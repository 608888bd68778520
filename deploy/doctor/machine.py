"""Checks the machine: Python and packages, CUDA, disk, memory, and the Ray that is named."""

import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tessera.deploy.doctor.finding import Finding, ok, problem, warning

INSTALL = "install Tessera again in this environment: pip install --editable ."
PYTHON = (3, 11)
GIB = 2**30
DISK_NEEDED, DISK_WANTED = GIB // 4, 2 * GIB
"""Bytes free on disk below which a run can hardly be kept, and below which it is time to make room."""
MEMORY_WANTED = GIB
"""Bytes of memory available below which to warn: several processes start, each with torch in memory."""
RAY_SECONDS = 2.0


@dataclass(frozen=True)
class Package:
    """A package and its module; releases `least` <= release < `below` fit. One with a `purpose` may be left out."""

    name: str
    module: str
    least: tuple[int, int] = (0, 0)
    below: tuple[int, int] | None = None
    purpose: str = ""


PACKAGES = (
    Package("flwr", "flwr", (1, 39), (1, 40)),
    Package("torch", "torch", (2, 6)),
    Package("grpcio", "grpc", (1, 70)),
    Package("ray", "ray", (2, 9), purpose="--executor ray"),
    Package("peft", "peft", (0, 21), (0, 22), purpose="adapters on towers"),
    Package("open_clip_torch", "open_clip", (2, 30), purpose="encoding with open_clip"),
)


def python() -> Finding:
    """Python's version."""
    found = f"Python {sys.version.split()[0]}"
    if sys.version_info[:2] < PYTHON:
        return problem("python", found, "install Tessera with Python 3.11 or newer")
    return ok("python", found)


def packages() -> Iterator[Finding]:
    """Which of the packages that matter are installed, in releases that fit. Only a needed one is a problem."""
    for package in PACKAGES:
        try:
            release = version(package.name) if find_spec(package.module) else ""
        except (PackageNotFoundError, ValueError):  # a module of that name, but not installed
            release = ""
        if not release and package.purpose:
            yield ok("packages", f"{package.name} was left out; only needed for {package.purpose}: {INSTALL}")
        elif not release:
            yield problem("packages", f"{package.name} is not installed", INSTALL)
        elif not _fits(release, package):
            say = warning if package.purpose else problem
            yield say("packages", f"{package.name} {release} is a release that Tessera does not work with", INSTALL)
        else:
            yield ok("packages", f"{package.name} {release}")


def _fits(release: str, package: Package) -> bool:
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    return package.least <= numbers and (package.below is None or numbers < package.below)


def computing() -> Finding:
    """Whether torch can be loaded, and what it computes on."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library it is linked to is missing
        return problem("compute", f"torch cannot be loaded: {error}", INSTALL)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return ok("compute", f"CUDA {torch.version.cuda}: {', '.join(names)}")
    if Path("/proc/driver/nvidia/version").exists():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs only"
        return warning(
            "compute",
            f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU; it {build}",
            "install a torch that fits the driver (make setup TORCH=...), or go on with CPUs",
        )
    return ok("compute", f"no CUDA: computed on {os.cpu_count()} CPUs")


def disk(folder: Path) -> Finding:
    """Room on the disk that `folder` is on."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return problem("disk", f"{folder} cannot be examined: {error}", "mount the disk, or choose another folder")
    found = f"{free / GIB:.1f} GiB free for {folder.absolute()}"
    remedy = "make room: old runs and prepared datasets are large"
    if free < DISK_NEEDED:
        return problem("disk", found, remedy)
    return warning("disk", found, remedy) if free < DISK_WANTED else ok("disk", found)


def memory() -> Finding:
    """Memory that is available."""
    try:
        import psutil
    except ImportError as error:
        return problem("memory", f"psutil cannot be loaded: {error}", INSTALL)
    available = psutil.virtual_memory().available
    found = f"{available / GIB:.1f} GiB available"
    if available < MEMORY_WANTED:
        return warning("memory", found, "end other programs: each of Flower's processes holds torch in memory")
    return ok("memory", found)


def ray_address() -> Finding:
    """Whether the Ray cluster that the environment names answers: `--executor ray` would run there."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # none, or one like auto, which is Ray's to look up
        return ok("ray", f"RAY_ADDRESS is {address}" if address else "no cluster is named; a run starts its own")
    try:
        socket.create_connection((host, int(port)), RAY_SECONDS).close()
    except (OSError, OverflowError):
        remedy = "start it there (ray start --head), or unset RAY_ADDRESS for a Ray of the run's own"
        return warning("ray", f"RAY_ADDRESS names {address}, where nobody answers", remedy)
    return ok("ray", f"a cluster answers at {address}, where --executor ray runs")
