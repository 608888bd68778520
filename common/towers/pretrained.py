"""Loads a pretrained text encoder of Hugging Face's transformers, from a local folder or by a name, and reads texts with it.

Encoders such as BERT are pooled by the mean over a text's tokens, models that read from left to right at the last token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import digest, file_digest
from tessera.common.utils.torchvision_operators import define_missing_operators


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


class TextTower(nn.Module):
    """A text encoder with its tokenizer: `name` tells its weights from others'."""

    def __init__(self, model: nn.Module, tokenizer: Any, name: str, last_token: bool) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name, self.last_token = model, tokenizer, name, last_token

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def tokens(self, texts: Sequence[str], length: int) -> Tokens:
        """Cut texts into tokens, at most `length` each, and no more than the model reads."""
        reads = getattr(self.model.config, "max_position_embeddings", None) or length
        length = min(length, int(reads), int(self.tokenizer.model_max_length))
        found = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return Tokens(found["input_ids"], found["attention_mask"])

    def forward(self, tokens: Tokens) -> Tensor:
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


def load_text_tower(model: str, device: torch.device | None = None) -> TextTower:
    """Load a model and its tokenizer, frozen and in evaluation. `model` is a local folder or a name on Hugging Face's hub.

    Raises `DataError` that says what is missing: the folder, its weights, its tokenizer, or one that belongs to another model.
    """
    define_missing_operators()
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        if len(tokenizer) <= config.vocab_size:
            loaded, report = AutoModel.from_pretrained(model, output_loading_info=True)
    except Exception as error:  # transformers raises whatever its readers and downloaders raise
        reason = str(error).strip().splitlines()
        raise DataError(f"no text encoder can be loaded from {model!r}: {reason[0] if reason else error!r}") from None
    if len(tokenizer) > config.vocab_size:
        raise DataError(
            f"the tokenizer in {model!r} has {len(tokenizer)} tokens, its model knows {config.vocab_size}: they do not "
            "belong together"
        )
    absent = [name for name in report["missing_keys"] if "pooler" not in name]
    if absent:
        raise DataError(
            f"the weights in {model!r} lack {absent[0]} and {len(absent) - 1} more: they are of another model"
        )
    last = bool(getattr(config, "is_decoder", False)) or _reads_forward(config)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    loaded.requires_grad_(False)
    tower = TextTower(
        loaded.eval(), tokenizer, f"huggingface:{Path(model).name}:{weights_digest(model, loaded)[:12]}", last
    )
    return tower.to(device or torch.device("cpu"))


def _reads_forward(config: Any) -> bool:
    return any(name.endswith("ForCausalLM") for name in config.architectures or ())


def weights_digest(model: str, loaded: nn.Module) -> str:
    """SHA-256 of the model's weights: of its files where it is a folder."""
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    if files:
        return digest("".join(map(file_digest, files)).encode())
    return digest(b"".join(value.detach().cpu().float().numpy().tobytes() for value in loaded.state_dict().values()))
