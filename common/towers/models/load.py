"""Loads what a device class is: a fitted reader of ours, or a model of transformers or open_clip, from a tower's folder.

CLASS/reader.safetensors     a reader of ours, or
CLASS/model/                 a model's own files: config.json, weights as safetensors and a tokenizer, as transformers writes
                             them; or open_clip_config.json and open_clip_model.safetensors, as open_clip does
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessera.common.errors import ConfigError, DataError
from tessera.common.towers.io import load_reader
from tessera.common.towers.models.base import TextModel
from tessera.common.towers.open_clip import ClipTower, OpenClip
from tessera.common.towers.pretrained import TextTower, load_text_tower
from tessera.common.towers.qa_reader import QAReader
from tessera.common.utils.atomic_files import digest, file_digest, read_json
from tessera.common.utils.computing.precision import resolved
from tessera.common.utils.torchvision_operators import define_missing_operators

MODEL = "model"
READER = "reader.safetensors"
CLIP_CONFIG, CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")


def reader_files(folder: Path) -> list[Path]:
    """The files that say what the tower in `folder` computes: its reader, or all of its model. Raises `FileNotFoundError`."""
    files = sorted(path for path in (folder / MODEL).glob("*") if path.is_file())
    if files:
        return files
    if not (folder / READER).is_file():
        raise FileNotFoundError(2, "no tower", str(folder / READER))
    return [folder / READER]


def content(folder: Path) -> str:
    """Content hash of the tower in `folder`. Raises `FileNotFoundError`."""
    return digest("".join(f"{path.name} {file_digest(path)}\n" for path in reader_files(folder)).encode())


def load_tower(folder: Path) -> QAReader | TextModel:
    """Load the tower in `folder`, frozen. Raises `DataError` that names what is missing or does not belong."""
    return load_text_model(folder / MODEL) if (folder / MODEL).is_dir() else load_reader(folder / READER)


def load_text_model(folder: Path) -> TextModel:
    """Load a model from its own folder, frozen, in evaluation.

    Raises `DataError` for weights that are missing or of another model, for a tokenizer that does not belong, and for a kind of
    model that cannot be adapted.
    """
    from tessera.common.towers.models.causal import CausalModel
    from tessera.common.towers.models.encoder import EncoderModel

    define_missing_operators()
    try:
        if (folder / CLIP_CONFIG).is_file():
            found: TextModel = EncoderModel(_clip(folder))
        elif writes(folder):
            found = CausalModel(*_causal(folder))
        else:
            tower = load_text_tower(str(folder))
            found = EncoderModel(_checked(tower, folder))
    except ConfigError as error:
        raise DataError(f"{folder}: {error}") from None
    return found.requires_grad_(requires_grad=False).eval()


def writes(folder: Path) -> bool:
    """Whether the model in a folder writes text, alone or about pictures. Raises `DataError` where there is no model."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} holds no model: there is no config.json in it, nor {CLIP_CONFIG}")
    architectures = read_json(folder / "config.json").get("architectures") or ()
    return any(str(name).endswith(("ForCausalLM", "ForConditionalGeneration")) for name in architectures)


def n_parameters(folder: Path) -> int:
    """Numbers in the weights of the tower in `folder`, from the files' headers."""
    total = 0
    for path in (path for path in reader_files(folder) if path.suffix == ".safetensors"):
        with path.open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
    return total


def _causal(folder: Path) -> tuple[nn.Module, Any, str]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise DataError(f"{folder} has no tokenizer: copy that of the model into it")
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
        _require_tokens(tokenizer, getattr(config, "text_config", config).vocab_size, folder)
        model, report = kind.from_pretrained(
            folder, output_loading_info=True, dtype=_dtype(config), attn_implementation=_attention()
        )
    except DataError:
        raise
    except Exception as error:  # transformers raises whatever its readers raise
        reason = str(error).strip().splitlines()
        raise DataError(f"no language model can be loaded from {folder}: {reason[0] if reason else error!r}") from None
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise DataError(
            f"the weights in {folder} lack {absent[0]} and {len(absent) - 1} more: they are of another model"
        )
    return model, tokenizer, folder.parent.name


def _require_tokens(tokenizer: Any, known: int, folder: Path) -> None:
    if len(tokenizer) > known:
        raise DataError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, its model knows {known}: they do not belong together"
        )


def _dtype(config: Any) -> torch.dtype:
    """The type that weights are computed in: that of the file on a GPU, and where the processor is faster with it."""
    kept: Any = getattr(config, "dtype", None) or getattr(getattr(config, "text_config", None), "dtype", None)
    if kept != torch.bfloat16 or torch.cuda.is_available():
        return torch.float32 if kept is None or (kept == torch.float16 and not torch.cuda.is_available()) else kept
    return torch.bfloat16 if resolved("auto") == "bfloat16" else torch.float32


def _attention() -> str:
    """How attention is computed: of texts as short as ours plain products are faster on a processor, by a third of a step."""
    return "sdpa" if torch.cuda.is_available() else "eager"


def _checked(tower: TextTower, folder: Path) -> TextTower:
    """Refuse a vocabulary that the model does not read: such a tokenizer gives tokens, and all of them mean something else."""
    vocabulary = int(tower.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    if len(tower.tokenizer) < vocabulary // 2:
        raise DataError(
            f"the tokenizer in {folder} has {len(tower.tokenizer)} tokens, its model knows {vocabulary}: they do not belong "
            "together"
        )
    return tower


def _clip(folder: Path) -> ClipTower:
    import open_clip

    weights = folder / CLIP_WEIGHTS
    if not weights.is_file():
        raise DataError(f"{weights} does not exist: the model has no weights")
    address = f"local-dir:{folder.resolve()}"
    try:
        loaded, _, transform = open_clip.create_model_and_transforms(address)
        tokenise = open_clip.get_tokenizer(address)
    except Exception as error:  # open_clip raises whatever the file raised
        raise DataError(f"no open_clip model can be loaded from {folder}: {error}") from None
    sha256 = file_digest(weights)
    return ClipTower(OpenClip(loaded.eval(), tokenise, transform, f"open_clip:{sha256[:12]}", sha256), "text")
