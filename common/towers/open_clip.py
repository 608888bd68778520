"""Loads open_clip models, from a checkpoint file or from weights that open_clip can fetch, and makes towers of their halves."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tessera.common.data.pictures import open_picture
from tessera.common.errors import DataError
from tessera.common.registry.encoders import OPEN_CLIP
from tessera.common.towers.attention import split_attention
from tessera.common.towers.pretrained import Inputs, Pictures, Tokens, Tower
from tessera.common.utils.atomic_files import file_digest
from tessera.common.utils.torchvision_operators import define_missing_operators

PREFIX = f"{OPEN_CLIP}:"
HUB = "https://huggingface.co"
TIMEOUT = 5.0
"""Seconds to wait for an answer from where weights are fetched."""


@dataclass(frozen=True)
class OpenClip:
    """A model in evaluation, how it cuts texts and looks at pictures, a `name` that tells its weights from others', and the
    SHA-256 of their file."""

    model: Any
    tokenise: Any
    transform: Any
    name: str
    sha256: str

    def read(self, path: Path) -> Tensor:
        """A picture as the model sees it, [3, height, width]. Raises `DataError`."""
        seen: Tensor = self.transform(open_picture(path))
        return seen


def load_open_clip(model: str, pretrained: str | None, device: torch.device) -> OpenClip:
    """Load `model` with `pretrained`, a local checkpoint or a name that open_clip knows. Raises `DataError`."""
    open_clip = _open_clip(model, pretrained)
    weights, about = _checkpoint(open_clip, model, str(pretrained))
    # Known weights by name, not by the file they were fetched to: open_clip normalises the pictures by the name.
    options = {
        "pretrained": pretrained if about else str(weights),
        "force_quick_gelu": about.get("quick_gelu", False),
    }
    try:
        loaded, _, transform = open_clip.create_model_and_transforms(model, device=device, **options)
        tokenise = open_clip.get_tokenizer(model)
    except Exception as error:  # open_clip raises whatever the file or its downloader raised
        raise DataError(f"{model} cannot be loaded with --pretrained {pretrained}: {error}") from None
    sha256 = file_digest(weights)
    name = f"{PREFIX}{model}:{Path(str(pretrained)).name}:{sha256[:12]}"
    return OpenClip(loaded.eval(), tokenise, transform, name, sha256)


class ClipTower(Tower):
    """One half of an open_clip model, frozen, its attention split so that adapters can sit on each projection."""

    def __init__(self, loaded: OpenClip, reads: str) -> None:
        super().__init__(loaded.name)
        split_attention(loaded.model)
        loaded.model.requires_grad_(False)
        self.reads, self._loaded = reads, (loaded,)  # in a tuple: of the model only this half is a part of the tower
        own = loaded.model.visual if reads == "image" else getattr(loaded.model, "text", loaded.model)
        if own is loaded.model:
            del own.visual
        self.model: nn.Module = own
        self.vocabulary: tuple[Any, ...] = () if reads == "image" else (loaded.tokenise,)

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.model.output_dim if self.reads == "image" else self._projection().shape[-1])  # type: ignore[arg-type]

    def _projection(self) -> Tensor:
        found: Any = self.model.text_projection
        return found.weight.T if isinstance(found, nn.Linear) else found

    def inputs(self, contents: Sequence[Any], length: int) -> Inputs:
        """Pictures by their paths, or texts, as long as the model reads them."""
        loaded = self._loaded[0]
        if self.reads == "image":
            return Pictures(tuple(contents), loaded.read)
        ids = loaded.tokenise(list(contents))
        return Tokens(ids, torch.ones_like(ids))

    def forward(self, inputs: Any) -> Tensor:
        """Unit vectors, [n, width]."""
        if self.reads == "image":
            found = self.model(inputs.to(next(self.model.parameters()).dtype))
        else:
            encode = getattr(self.model, "encode_text", self.model)
            found = encode(inputs.ids)
        return normalize(found, dim=1)


def load_clip_tower(name: str, reads: str) -> ClipTower:
    """The half of open_clip:MODEL:CHECKPOINT that reads "image" or "text". Raises `DataError`."""
    model, _, pretrained = name.removeprefix(PREFIX).partition(":")
    return ClipTower(load_open_clip(model, pretrained or None, torch.device("cpu")), reads)


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
