"""Takes a model over into a dataset's towers, or a device's folder: files are linked where that is possible, else copied."""

import os
import shutil
from pathlib import Path

import torch

from tessera.common.errors import DataError
from tessera.common.registry.encoders import HUGGING_FACE_PREFIX
from tessera.common.towers.models.load import CLIP_CONFIG, CLIP_WEIGHTS, MODEL
from tessera.common.towers.open_clip import PREFIX, load_open_clip
from tessera.common.utils.atomic_files import read_json, write_json, write_tensors

KEPT = (".json", ".txt", ".model", ".safetensors", ".jinja")
"""Files of a model's folder that are taken: no code, no pickles."""
SOURCE = "model-source.json"


def take_model(source: str, folder: Path) -> None:
    """Make `folder`/model the model that a setting names: a local folder, hf:NAME or open_clip:MODEL:CHECKPOINT.

    One that lies there from the same files is left. Raises `DataError` for a model that is not there.
    """
    target, mark = folder / MODEL, _mark(source)
    if target.is_dir() and (folder / SOURCE).is_file() and read_json(folder / SOURCE) == mark:
        return
    shutil.rmtree(target, ignore_errors=True)
    if source.startswith(PREFIX):
        _write_clip(source, target)
    else:
        place(_found(source), target)
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
    if not source.startswith(HUGGING_FACE_PREFIX):
        if not Path(source).is_dir():
            raise DataError(
                f"there is no folder {source!r} with a model: name one, hf:NAME or open_clip:MODEL:CHECKPOINT"
            )
        return Path(source)
    from huggingface_hub import snapshot_download

    name = source.removeprefix(HUGGING_FACE_PREFIX)
    try:
        return Path(snapshot_download(name, allow_patterns=[f"*{end}" for end in KEPT]))
    except Exception as error:  # whatever the downloader raises
        reason = str(error).strip().splitlines()
        raise DataError(f"no model {name!r} can be fetched: {reason[0] if reason else error!r}") from None


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
    path = Path(source.removeprefix(PREFIX).partition(":")[2] if source.startswith(PREFIX) else source)
    files = sorted(path.glob("*")) if path.is_dir() else [path] if path.is_file() else []
    return {"source": source, "files": [[one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in files]}
