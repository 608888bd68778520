"""Takes a model over into a dataset's towers, or a device's folder: files are linked where that is possible, else copied."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from tessera.common.errors import ConfigError, DataError
from tessera.common.registry.encoders import HUGGING_FACE_PREFIX
from tessera.common.towers.models.gguf import SUFFIX as GGUF_SUFFIX
from tessera.common.towers.models.gguf import convert_gguf
from tessera.common.towers.models.load import CLIP_CONFIG, CLIP_WEIGHTS, MODEL
from tessera.common.towers.open_clip import PREFIX, load_open_clip
from tessera.common.utils.atomic_files import read_json, write_json, write_tensors

KEPT = (".json", ".txt", ".model", ".safetensors", ".jinja")
"""Files of a model's folder that are taken: no code, no pickles."""
SOURCE = "model-source.json"
PACKAGE_PREFIX = "package:"
"""What stands before the name of an installed Python package that holds a model, as a folder or as a GGUF file."""
SOURCES = "a GGUF file, package:NAME, hf:NAME or open_clip:MODEL:CHECKPOINT"
"""What names a model beside a local folder."""


def take_model(source: str, folder: Path) -> None:
    """Make `folder`/model the model that a setting names: see `SOURCES`.

    One that lies there from the same files is left. Raises `DataError` for a model that is not there, `ConfigError` where a
    package is missing that has or reads it.
    """
    target, mark = folder / MODEL, _mark(source)
    if target.is_dir() and (folder / SOURCE).is_file() and read_json(folder / SOURCE) == mark:
        return
    shutil.rmtree(target, ignore_errors=True)
    if source.startswith(PREFIX):
        _write_clip(source, target)
    elif (found := _found(source)).suffix == GGUF_SUFFIX:
        convert_gguf(found, target)
    else:
        place(found, target)
    write_json(folder / SOURCE, mark)


def place(source: Path, target: Path) -> None:
    """Link or copy a model's files. Raises `DataError` for a folder without weights as safetensors."""
    files = [path for path in sorted(source.glob("*")) if path.is_file() and path.suffix in KEPT]
    if not any(path.suffix == ".safetensors" for path in files):
        raise DataError(f"{source} has no weights as safetensors: save the model with transformers or open_clip")
    target.mkdir(parents=True)
    for path in files:
        try:
            os.link(path.resolve(), target / path.name)
        except OSError:  # another file system, or one without hard links
            shutil.copy(path, target / path.name)


def _found(source: str) -> Path:
    """The folder or the GGUF file that a source is on this machine. Raises `DataError` and `ConfigError`."""
    if source.startswith(PACKAGE_PREFIX):
        return _in_package(source.removeprefix(PACKAGE_PREFIX))
    if not source.startswith(HUGGING_FACE_PREFIX):
        path = Path(source)
        if path.is_dir() or (path.is_file() and path.suffix == GGUF_SUFFIX):
            return path
        raise DataError(f"there is no folder {source!r} with a model: name one, {SOURCES}")
    from huggingface_hub import snapshot_download

    name = source.removeprefix(HUGGING_FACE_PREFIX)
    try:
        return Path(snapshot_download(name, allow_patterns=[f"*{end}" for end in KEPT]))
    except Exception as error:  # whatever the downloader raises
        reason = str(error).strip().splitlines()
        raise DataError(f"no model {name!r} can be fetched: {reason[0] if reason else error!r}") from None


def _in_package(name: str) -> Path:
    """The one model that an installed Python package holds: its files are looked at, its code is not run."""
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the Python package {name!r}, which should hold a model, is not installed; what the benchmarks need comes with "
            "pip install 'tessera[words]'"
        )
    root = Path(spec.submodule_search_locations[0])
    found = sorted(root.rglob(f"*{GGUF_SUFFIX}")) + sorted(path.parent for path in root.rglob("config.json"))
    if len(found) != 1:
        raise DataError(f"the Python package {name!r} holds {len(found)} models in {root}: name a folder or file in it")
    return found[0]


def _write_clip(source: str, target: Path) -> None:
    model, _, pretrained = source.removeprefix(PREFIX).partition(":")
    loaded = load_open_clip(model, pretrained or None, torch.device("cpu"))
    import open_clip

    target.mkdir(parents=True)
    about = {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": {}}
    write_json(target / CLIP_CONFIG, about)
    write_tensors(
        target / CLIP_WEIGHTS, {name: value.contiguous() for name, value in loaded.model.state_dict().items()}
    )


def _mark(source: str) -> dict[str, object]:
    """What tells whether a source changed: its files' names, sizes and times."""
    if source.startswith(PACKAGE_PREFIX):
        path = _in_package(source.removeprefix(PACKAGE_PREFIX))
    else:
        path = Path(source.removeprefix(PREFIX).partition(":")[2] if source.startswith(PREFIX) else source)
    files = sorted(path.glob("*")) if path.is_dir() else [path] if path.is_file() else []
    return {"source": source, "files": [[one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in files]}
