"""Encodes pictures and texts by an open_clip model, from a checkpoint file or from weights that open_clip can fetch."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch

from tessera.common.encoders.base import Vectors, chunks
from tessera.common.encoders.pictures import open_picture
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import file_digest
from tessera.common.utils.torch_device import resolve_device
from tessera.common.utils.torchvision_operators import define_missing_operators

HUB = "https://huggingface.co"
TIMEOUT = 5.0
"""Seconds to wait for an answer from where weights are fetched."""


class ClipEncoder:
    """An open_clip model with pretrained weights."""

    def __init__(self, model: str, pretrained: str | None, device: str = "auto") -> None:
        """Load `model` with `pretrained`, a local checkpoint or a name that open_clip knows. Raises `DataError`."""
        open_clip = _open_clip(model, pretrained)
        weights, about = _checkpoint(open_clip, model, str(pretrained))
        self._device = resolve_device(device)
        # Known weights by name, not by the file they were fetched to: open_clip normalises the pictures by the name.
        options = {
            "pretrained": pretrained if about else str(weights),
            "force_quick_gelu": about.get("quick_gelu", False),
        }
        try:
            loaded = open_clip.create_model_and_transforms(model, device=self._device, **options)
            self._tokenise = open_clip.get_tokenizer(model)
        except Exception as error:  # open_clip raises whatever the file or its downloader raised
            raise DataError(f"{model} cannot be loaded with --pretrained {pretrained}: {error}") from None
        self._model, _, self._transform = loaded
        self._model.eval()
        sha256 = file_digest(weights)
        self.weights: Mapping[str, str] = {"image": sha256, "text": sha256}
        self.image_name = self.text_name = f"open_clip:{model}:{Path(str(pretrained)).name}:{sha256[:12]}"

    def encode_images(self, paths: Sequence[Path]) -> Vectors:
        """Unit image embeddings, [n, n_features]."""
        with ThreadPoolExecutor() as readers:
            batches = (torch.stack(list(readers.map(self._read, chunk))) for chunk in chunks(paths))
            return self._encode(self._model.encode_image, batches)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit text embeddings, [n, n_features]; a text longer than the model reads is cut."""
        return self._encode(self._model.encode_text, (self._tokenise(list(chunk)) for chunk in chunks(texts)))

    def _read(self, path: Path) -> Any:
        return self._transform(open_picture(path))

    def _encode(self, encode: Any, batches: Iterator[Any]) -> Vectors:
        with torch.inference_mode():
            encoded = [encode(batch.to(self._device), normalize=True).float().cpu() for batch in batches]
        vectors: Vectors = torch.cat(encoded).numpy()
        return vectors


def _open_clip(model: str, pretrained: str | None) -> Any:
    """The module open_clip. Raises `DataError` where it is missing or broken, or has nothing to load."""
    if find_spec("open_clip") is None:
        raise DataError(
            f"encoding with {model} needs open_clip, which is not installed here: pip install open_clip_torch"
        )
    if not pretrained or ":" in model:  # open_clip ignores the weights asked for where the model is an address
        raise DataError(
            f"{model} has no weights: pass a model's name such as ViT-B-32, and --pretrained with a checkpoint file or "
            "a name open_clip knows"
        )
    if not Path(pretrained).is_file() and not _reachable(os.environ.get("HF_ENDPOINT", HUB)):
        os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: what was fetched before is used, nothing is waited for
    try:
        define_missing_operators()
        import open_clip
    except (ImportError, RuntimeError) as error:  # torchvision without its operators raises the latter
        raise DataError(
            f"open_clip is installed but cannot be imported ({error}): install the torchvision that belongs to torch "
            f"{torch.__version__}"
        ) from None
    return open_clip


def _reachable(address: str) -> bool:
    """Whether a server answers at all, be it with an error."""
    try:
        with urlopen(Request(address, method="HEAD"), timeout=TIMEOUT):
            return True
    except HTTPError:
        return True
    except OSError:
        return False


def _checkpoint(open_clip: Any, model: str, pretrained: str) -> tuple[Path, dict[str, Any]]:
    """The file of weights, the one that is named or else fetched now or before, and what open_clip knows about it."""
    if Path(pretrained).is_file():
        return Path(pretrained).absolute(), {}
    known = open_clip.get_pretrained_cfg(model, pretrained)
    if not known:
        names = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise DataError(
            f"--pretrained {pretrained} is no file, nor weights that open_clip knows for {model}: pass a checkpoint's "
            f"path, or one of {names}"
        )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # open_clip's own downloads wait forever
    try:
        return Path(open_clip.download_pretrained(known)), known
    except Exception as error:  # whatever the downloader raised
        raise DataError(
            f"the weights {pretrained} of {model} are not on this machine and cannot be downloaded: copy a checkpoint "
            f"here and pass its path with --pretrained ({error})"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
