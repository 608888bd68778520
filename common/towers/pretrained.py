"""Loads pretrained encoders of texts or of pictures of Hugging Face's transformers, from a local folder or by a name.

Text encoders such as BERT are pooled by the mean over a text's tokens, models that read from left to right at the last token.
Of pictures, transformers are pooled at their first token, convolutional networks by the mean over places.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tessera.common.data.pictures import open_picture
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import digest, file_digest
from tessera.common.utils.torchvision_operators import define_missing_operators


class Inputs(Protocol):
    """What a tower reads, some of it at a time."""

    def __len__(self) -> int:
        """Return how many there are."""

    def take(self, rows: Tensor) -> Self:
        """Some of them."""

    def chunks(self, size: int) -> Iterator[Self]:
        """`size` of them at a time."""

    def to(self, device: torch.device) -> Any:
        """What the tower takes, on a device."""


class Tower(nn.Module, ABC):
    """A pretrained encoder that is frozen: `name` tells its weights from others', `model` is what may be adapted in it."""

    model: nn.Module
    reads: str
    """"text" or "image"."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers in a vector."""

    @abstractmethod
    def inputs(self, contents: Sequence[Any], length: int) -> Inputs:
        """Texts, of at most `length` tokens each, or pictures by their paths, as it reads them."""

    @abstractmethod
    def forward(self, inputs: Any) -> Tensor:
        """Unit vectors, [n, width]."""


@dataclass(frozen=True)
class Pictures:
    """Pictures that are read from their files when they are looked at: `look` gives one, [3, height, width]."""

    paths: tuple[Path, ...]
    look: Callable[[Path], Tensor]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def take(self, rows: Tensor) -> "Pictures":
        """Some of the pictures."""
        return Pictures(tuple(self.paths[row] for row in rows.tolist()), self.look)

    def chunks(self, size: int) -> Iterator["Pictures"]:
        """`size` pictures at a time."""
        return (Pictures(self.paths[at : at + size], self.look) for at in range(0, len(self), size))

    def to(self, device: torch.device) -> Tensor:
        """Read them, [n, 3, height, width]. Raises `DataError` that names a file that cannot be read."""
        return torch.stack([self.look(path) for path in self.paths]).to(device)


@dataclass(frozen=True)
class Tokens:
    """Texts as a model reads them: `ids` [n, length], and `mask` [n, length], which is 0 behind a text's end."""

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.ids)

    def to(self, device: torch.device) -> "Tokens":
        """Move them."""
        return Tokens(self.ids.to(device), self.mask.to(device))

    def take(self, rows: Tensor) -> "Tokens":
        """Some of the texts."""
        return Tokens(self.ids[rows], self.mask[rows])

    def chunks(self, size: int) -> Iterator["Tokens"]:
        """`size` texts at a time, each chunk as long as its longest text."""
        for start in range(0, len(self), size):
            ids, mask = self.ids[start : start + size], self.mask[start : start + size]
            length = max(1, int(mask.sum(1).max()))
            yield Tokens(ids[:, :length], mask[:, :length])


class TextTower(Tower):
    """A text encoder with its tokenizer."""

    reads = "text"

    def __init__(self, model: nn.Module, tokenizer: Any, name: str, last_token: bool) -> None:
        super().__init__(name)
        self.model, self.tokenizer, self.last_token = model, tokenizer, last_token

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def inputs(self, texts: Sequence[str], length: int) -> Tokens:
        """Cut texts into tokens, at most `length` each, and no more than the model reads."""
        reads = getattr(self.model.config, "max_position_embeddings", None) or length
        length = min(length, int(reads), int(self.tokenizer.model_max_length))
        found = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return Tokens(found["input_ids"], found["attention_mask"])

    def forward(self, tokens: Any) -> Tensor:
        """Unit vectors of texts, [n, width]."""
        output = self.model(input_ids=tokens.ids, attention_mask=tokens.mask)
        return normalize(self._pooled(output.last_hidden_state, tokens.mask), dim=1)

    def states(self, tokens: Tokens) -> Tensor:
        """What each layer holds of a text, pooled, [n, 1 + n_layers, width]: the embedding first, the last layer last."""
        output = self.model(input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=True)
        return torch.stack([self._pooled(state, tokens.mask) for state in output.hidden_states], dim=1)

    def _pooled(self, state: Tensor, mask: Tensor) -> Tensor:
        if self.last_token:
            return state[torch.arange(len(state), device=state.device), mask.sum(1) - 1]
        weights = mask.to(state.dtype)[:, :, None]
        return (state * weights).sum(1) / weights.sum(1).clamp(min=1)


class PictureTower(Tower):
    """An encoder of pictures with what prepares them for it."""

    reads = "image"

    def __init__(self, model: nn.Module, processor: Any, name: str) -> None:
        super().__init__(name)
        self.model, self.processor = model, processor

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        config: Any = self.model.config
        return int(getattr(config, "hidden_size", 0) or config.hidden_sizes[-1])

    def inputs(self, contents: Sequence[Path], length: int) -> Pictures:
        """Pictures by their paths."""
        return Pictures(tuple(contents), self._look)

    def forward(self, inputs: Any) -> Tensor:
        """Unit vectors of pictures [n, 3, height, width], [n, width]."""
        state = self.model(pixel_values=inputs.to(next(self.model.parameters()).dtype)).last_hidden_state
        return normalize(state[:, 0] if state.ndim == 3 else state.mean((2, 3)), dim=1)

    def states(self, inputs: Any) -> Tensor:
        """What each layer holds of a picture at its first token, [n, 1 + n_layers, width]; the last is what `forward` goes by.
        Raises `DataError` for convolutional networks, whose layers are of different widths."""
        output = self.model(pixel_values=inputs, output_hidden_states=True)
        if output.last_hidden_state.ndim != 3:
            raise DataError(f"{self.name} has layers of different widths: they cannot be kept, use its features")
        return torch.stack([state[:, 0] for state in (*output.hidden_states[:-1], output.last_hidden_state)], dim=1)

    def _look(self, path: Path) -> Tensor:
        seen: Tensor = self.processor(open_picture(path), return_tensors="pt")["pixel_values"][0]
        return seen


def load_tower(model: str) -> TextTower | PictureTower:
    """Load an encoder, of pictures or of texts as its configuration says. Raises `DataError`."""
    return load_picture_tower(model) if reads_pictures(model) else load_text_tower(model)


def reads_pictures(model: str) -> bool:
    """Whether an encoder is one of pictures alone. Raises `DataError` where there is none."""
    define_missing_operators()
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model)
    except Exception as error:  # transformers raises whatever its readers and downloaders raise
        raise _not_loaded("encoder", model, error) from None
    return hasattr(config, "num_channels") and not hasattr(config, "vocab_size")


def load_picture_tower(model: str, device: torch.device | None = None) -> PictureTower:
    """Load a model of pictures and what prepares these, frozen, in evaluation. Raises `DataError` that says what is missing."""
    define_missing_operators()
    from transformers import AutoImageProcessor, AutoModel

    _quietly()
    try:
        processor = AutoImageProcessor.from_pretrained(model)
        loaded, report = AutoModel.from_pretrained(model, output_loading_info=True)
    except Exception as error:
        raise _not_loaded("encoder of pictures", model, error) from None
    return PictureTower(_frozen(loaded, report, model), processor, _name(model, loaded)).to(
        device or torch.device("cpu")
    )


def load_text_tower(model: str, device: torch.device | None = None) -> TextTower:
    """Load a model and its tokenizer, frozen and in evaluation. `model` is a local folder or a name on Hugging Face's hub.

    Raises `DataError` that says what is missing: the folder, its weights, its tokenizer, or one that belongs to another model.
    """
    define_missing_operators()
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    _quietly()
    try:
        config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        if len(tokenizer) <= config.vocab_size:
            loaded, report = AutoModel.from_pretrained(model, output_loading_info=True)
    except Exception as error:  # transformers raises whatever its readers and downloaders raise
        raise _not_loaded("text encoder", model, error) from None
    if len(tokenizer) > config.vocab_size:
        raise DataError(
            f"the tokenizer in {model!r} has {len(tokenizer)} tokens, its model knows {config.vocab_size}: they do not "
            "belong together"
        )
    last = bool(getattr(config, "is_decoder", False)) or _reads_forward(config)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tower = TextTower(_frozen(loaded, report, model), tokenizer, _name(model, loaded), last)
    return tower.to(device or torch.device("cpu"))


def _quietly() -> None:
    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()


def _not_loaded(what: str, model: str, error: Exception) -> DataError:
    reason = str(error).strip().splitlines()
    return DataError(f"no {what} can be loaded from {model!r}: {reason[0] if reason else error!r}")


def _frozen(loaded: Any, report: Any, model: str) -> nn.Module:
    """A model that does not learn. Raises `DataError` where weights were missing, so that it has drawn ones in their place."""
    absent = [name for name in report["missing_keys"] if "pooler" not in name]
    if absent:
        raise DataError(
            f"the weights in {model!r} lack {absent[0]} and {len(absent) - 1} more: they are of another model"
        )
    frozen: nn.Module = loaded.requires_grad_(False).eval()
    return frozen


def _name(model: str, loaded: nn.Module) -> str:
    return f"huggingface:{Path(model).name}:{weights_digest(model, loaded)[:12]}"


def _reads_forward(config: Any) -> bool:
    return any(name.endswith("ForCausalLM") for name in config.architectures or ())


def weights_digest(model: str, loaded: nn.Module) -> str:
    """SHA-256 of the model's weights: of its files where it is a folder."""
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    if files:
        return digest("".join(map(file_digest, files)).encode())
    return digest(b"".join(value.detach().cpu().float().numpy().tobytes() for value in loaded.state_dict().values()))
