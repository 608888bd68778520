"""Defines what an encoder behind the views is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tessera.common.registry.component import ComponentSettings


@dataclass(frozen=True)
class ContentInputs:
    """What is public of one modality of items: standardised `features` [n_items, width], a unit of which was `scale` before.

    `contents` are the items' words, or the files of their pictures, where the modality is made of these and the dataset has
    them; None for an item without. `folder` is the dataset's, where there is one.
    """

    modality: str
    features: Tensor
    scale: float = 1.0
    contents: tuple[str | Path | None, ...] = ()
    folder: Path | None = None


class ContentEncoder(nn.Module, ABC):
    """Encodes all items by one modality: [n_items, width] from what is public of them.

    At the start it returns the features as they are, exactly, so that whatever was computed from these holds; and each of its
    parameters moves within two steps. What does not learn is in no state: it is read again from where it lies.
    """

    def __init__(self, settings: ComponentSettings, inputs: ContentInputs) -> None:
        super().__init__()
        self.settings = settings

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Encode the items that have these `features` [n_items, width]."""

    def stepped(self) -> None:
        """Hear that the server took a step: what is drawn for a step is drawn anew. Nothing by default."""
        return None
