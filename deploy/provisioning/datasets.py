"""Find the dataset a run asks for; a raw one is converted once and kept under `prepared/`."""

import json
import os
from pathlib import Path

from tessera.common.config.settings import DataSettings
from tessera.common.data.catalogue import DATASET
from tessera.common.datasets import Options, convert
from tessera.common.datasets.dataset_folder import WITHOUT_PEOPLE
from tessera.common.encoders.builtin import BuiltinEncoder
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import digest, read_json

VARIABLE = "TESSERA_DATA"


def prepared_dataset(settings: DataSettings, data: Path | None, cache: Path = Path("prepared")) -> Path:
    """Return the converted dataset's folder. Raises `DataError` that says where it was looked for.

    `data` is the dataset's own folder or the one that holds it; without it, TESSERA_DATA. The generated shop needs neither.
    A conversion is found again by its settings and by the names, sizes and times of the raw files. What no filter applies to
    may also be there converted.
    """
    source = Path("generated") if settings.kind == "shop" else _source(settings, data)
    if settings.kind == "converted":
        if not (source / DATASET).is_file():
            raise DataError(
                f"{source} is not a converted dataset: convert it (tessera data convert), or name its kind in the config"
            )
        return source
    if settings.kind in WITHOUT_PEOPLE and (source / DATASET).is_file():
        if read_json(source / DATASET).get("kind") != settings.kind:
            raise DataError(f"{source} is a converted dataset, but not of the kind {settings.kind}")
        return source
    kept = settings.model_dump_json(exclude={"cold_items", "cold_users"})
    key = digest((kept + json.dumps(_listing(source))).encode())[:12]
    destination = cache / f"{Path(settings.folder).name}-{key}"
    if not (destination / DATASET).is_file():
        options = Options(encoder=BuiltinEncoder() if settings.encode == "builtin" else None)
        convert(settings.kind, source, destination, settings, options)
    return destination


def _source(settings: DataSettings, data: Path | None) -> Path:
    root = data or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if root is None:
        raise DataError(f"where is {settings.folder!r}? Pass --data, or set {VARIABLE} to the folder that holds it")
    if (root / settings.folder).is_dir():
        return root / settings.folder
    if data is not None and root.is_dir():
        return root
    raise DataError(f"there is no folder {settings.folder!r} in {root}")


def _listing(source: Path) -> list[tuple[str, int, int]]:
    files = sorted(path for path in source.glob("*") if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
