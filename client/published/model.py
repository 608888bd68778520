"""The published model that a device holds: which one it is, and how popular items are by it.

published/manifest.json             as it came from the server; its tensors lie beside those of runs, in views/
published/popularity.safetensors    where the server says how popular items are
"""

import logging
from pathlib import Path

from torch import Tensor

from tessera.common.errors import DataError
from tessera.common.protocol.published import MANIFEST, POPULARITY, Published
from tessera.common.utils.atomic_files import read_tensors

log = logging.getLogger("tessera.device")
FOLDER, POPULARITY_FILE = "published", "popularity.safetensors"


def held_model(folder: Path) -> Published | None:
    """The published model that the device in `folder` holds; None where it holds none, or it cannot be read."""
    path = folder / FOLDER / MANIFEST
    try:
        return Published.read(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except (OSError, DataError) as error:
        log.warning("%s; pull the model again", error)
        return None


def popularity(folder: Path) -> Tensor | None:
    """How popular items are, [n_items], by the model that a device holds; None where nothing is said of it."""
    try:
        found = read_tensors(folder / FOLDER / POPULARITY_FILE)[0].get(POPULARITY)
    except DataError:
        return None
    return found.float() if found is not None and found.ndim == 1 else None
