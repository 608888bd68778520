"""Defines what a model must do to be a device class: be asked questions in words, and say which of its layers are adapted."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from tessera.common.data.text_questions import N_CHOICES, TextQuestions
from tessera.common.errors import ConfigError

STACK = "text"
"""What the blocks of a model of texts are called in places: the same for encoders and language models."""


class Batch(Protocol):
    """Questions as one model reads them."""

    right: Tensor
    """Which choice is right, [n]; -1 where there are none."""

    def __len__(self) -> int:
        """Return the number of questions."""

    def take(self, rows: Tensor) -> Self:
        """Some of them."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""


class TextModel(nn.Module, ABC):
    """A frozen model that is asked questions in words; `stacks` names its list of blocks, `signs_with` the layer whose gradient
    is a signature."""

    stacks: Mapping[str, str]
    signs_with: str
    writes: bool
    """Whether it can write an answer, not only choose one."""

    @abstractmethod
    def read(self, questions: TextQuestions) -> Any:
        """Cut questions into tokens: a `Batch`. Raises `DataError` for questions that it cannot answer."""

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """What it says of the choices, [n, N_CHOICES]; -inf where there are none."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """What it is trained by: the mean over questions."""

    @abstractmethod
    def vectors(self, batch: Any) -> Tensor:
        """What it makes of the prompts, [n, width]."""

    @abstractmethod
    def word_likelihoods(self, words: Any) -> Tensor | None:
        """Log-likelihood of each word after those before it, [n_words]; None for a model that predicts no words."""

    @abstractmethod
    def pooled(self, words: Any) -> Tensor:
        """Unit vectors of whole texts, [n, width]."""

    @abstractmethod
    def cut(self, texts: Sequence[Sequence[str]]) -> Any:
        """Texts of words as tokens that know which word they are of: `WordTokens`."""

    @abstractmethod
    def run(self, words: Any) -> Tensor:
        """Last hidden states of `WordTokens`, [n, length, width]."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device


def blocks_of(model: nn.Module, n_layers: int | None) -> str:
    """The path of the largest list of blocks, which has to have `n_layers` of them where the model's configuration says so.

    Raises `ConfigError` where there is none such: blocks may share their weights, or lie elsewhere.
    """
    found: dict[str, nn.ModuleList | nn.Sequential] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and any(isinstance(m, nn.Linear) for m in module.modules())
    }
    if not found:
        raise ConfigError("the model has no list of blocks with linear layers: models of this kind cannot be adapted")
    path: str = max(found, key=lambda name: (sum(p.numel() for p in found[name].parameters()), -len(name)))
    if n_layers is not None and len(found[path]) != n_layers:
        raise ConfigError(
            f"the model's configuration says {n_layers} blocks, and {path!r} has {len(found[path])}: models of this kind "
            "cannot be adapted"
        )
    return path


def last_linear(model: nn.Module, path: str, role_end: str) -> str:
    """The path of the last block's linear layer that plays a role, such as "attn.out_proj". Raises `ConfigError`."""
    from tessera.common.towers.adapter_placement import role

    blocks = model.get_submodule(path)
    *_, (index, last) = blocks.named_children()
    found = [n for n, module in last.named_modules() if isinstance(module, nn.Linear) and role(n) == role_end]
    if not found:
        raise ConfigError(f"the last block of {path!r} has no layer that is its {role_end}: its family is not known")
    return f"{path}.{index}.{found[0]}"


def offered_mask(questions: TextQuestions) -> Tensor:
    """Which choices there are, [n, N_CHOICES]."""
    counts = torch.tensor([len(offered) for offered in questions.choices]).view(-1, 1)
    return torch.arange(N_CHOICES)[None] < counts
