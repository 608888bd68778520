"""Says what a folder is that was taken for another: a run's, a device's, one that holds them, or a dataset's."""

from pathlib import Path

from tessera.common.errors import DataError

DATASET, INTERACTIONS = "dataset.json", "interactions.parquet"
RUN_FILES = ("config.yaml", "status.json")
DEVICE_FILES = (INTERACTIONS, "people.json", "questions")
"""Of which any device has one."""
DEVICES = "devices"


def is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    return all((folder / name).is_file() for name in RUN_FILES)


def is_device(folder: Path) -> bool:
    """Whether a folder is a device's, with people's events or with questions; a dataset has events too."""
    return any((folder / name).exists() for name in DEVICE_FILES) and not is_dataset(folder)


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset's, which no command of a device may change: others read it too."""
    return (folder / DATASET).is_file()


def require_device(folder: Path) -> Path:
    """A device's folder. Raises `DataError` where it is none: nothing is written into another."""
    if not is_device(folder):
        raise DataError(no_device(folder))
    return folder


def no_device(folder: Path) -> str:
    """Why a folder is no device's, and which one may be meant."""
    told = f"{folder} is no device's folder"
    if not folder.exists():
        return f"{told}: it does not exist"
    if not folder.is_dir():
        return f"{told}: it is a file"
    if is_dataset(folder):
        return f"{told} but a dataset's: tessera data partition shares its people out to devices"
    for where, what in ((folder / DEVICES, "a run's"), (folder, "one that holds devices")):
        if found := _devices(where):
            others = f", one of {len(found)}" if len(found) > 1 else ""
            return f"{told} but {what}: name a device, such as {found[0]}{others}"
    if is_run(folder):
        return f"{told} but a run's, whose devices are elsewhere: name one of them"
    if runs := sorted(path for path in _folders(folder) if is_run(path)):
        found = next(filter(None, (_devices(run / DEVICES) for run in runs)), [])
        return f"{told} but one that holds runs: name a device{f', such as {found[0]}' if found else ''}"
    return f"{told}: there is no {INTERACTIONS} in it"


def other_than_data(folder: Path) -> str:
    """What a folder is that was taken for a dataset's, where it is something else of ours; "" where it is not."""
    if is_run(folder):
        return f"{folder} is a run's folder, and no data: its settings, which name the data, are in {folder / RUN_FILES[0]}"
    if is_device(folder):
        return f"{folder} is a device's folder, and no dataset: see tessera device people --data-dir {folder}"
    if devices := _devices(folder):
        return f"{folder} holds devices, and no dataset: see tessera device people --data-dir {devices[0]}"
    return ""


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _devices(folder: Path) -> list[Path]:
    """The devices in a folder, node-2 before node-10."""
    return sorted(filter(is_device, _folders(folder)), key=lambda path: (len(path.name), path.name))
