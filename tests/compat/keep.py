"""Keeps the client's half as it is now: python -m tests.compat.keep VERSION. Done once, when a protocol version is introduced.

What is kept are the sources of client/ and common/, as the package `tessera`, in tests/compat/device-VERSION.zip.
"""

import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def archive(version: int) -> Path:
    """Where the copy of a protocol version lies."""
    return HERE / f"device-{version}.zip"


def keep(version: int) -> Path:
    """Write the copy; the same sources give the same bytes."""
    files = {
        f"tessera/{path.relative_to(ROOT)}": path
        for half in ("client", "common")
        for path in (ROOT / half).rglob("*.py")
    }
    with ZipFile(archive(version), "w", ZIP_DEFLATED, compresslevel=9) as kept:
        kept.writestr(ZipInfo("tessera/__init__.py"), "")
        for name, path in sorted(files.items()):
            kept.writestr(ZipInfo(name), path.read_bytes(), ZIP_DEFLATED)
    return archive(version)


if __name__ == "__main__":
    print(keep(int(sys.argv[1])))
