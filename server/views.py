"""From a catalogue and learnt embeddings to the views that devices receive."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.catalogue import Catalogue
from common.config import ViewSettings
from common.errors import DataError
from common.protocol import HISTORY, VIEWS
from server.fusion import OPERATORS

ID = "id"


class ViewGenerator(nn.Module):
    """F_j = g_j(V, C, ..., D; gamma_j) for each operator, then each single modality's projection (FedVLR Eq. 1-2).

    Features are standardised and frozen; a linear map takes each modality, and the ID embedding D [n_items, id_dim], to
    `dim`. With `history`, one more table H [n_items, dim] is learnt: the history view.
    """

    def __init__(self, catalogue: Catalogue, settings: ViewSettings, history: bool) -> None:
        super().__init__()
        self.modalities = _choose(catalogue, settings.modalities)
        for name in self.modalities:
            self.register_buffer(
                f"features_{name}", torch.from_numpy(catalogue.features[name].standardised()), persistent=False
            )
        widths = {name: self.get_buffer(f"features_{name}").shape[1] for name in self.modalities} | {
            ID: settings.id_dim
        }
        self.projections = nn.ModuleDict({name: nn.Linear(width, settings.dim) for name, width in widths.items()})
        self.embedding = nn.Parameter(settings.id_scale * torch.randn(len(catalogue), settings.id_dim))
        self.history = nn.Parameter(settings.id_scale * torch.randn(len(catalogue), settings.dim)) if history else None
        operators = {str(name): OPERATORS[name](len(widths), settings.dim) for name in settings.operators}
        self.operators = nn.ModuleDict(operators)
        self.single = settings.single

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the views in their order: operators, then modalities, then the ID embedding."""
        return (*self.operators, *(self.projections if self.single else ()))

    def forward(self) -> dict[str, Tensor]:
        """Build what is broadcast: "views" [n_views, n_items, dim] and, where learnt, "history" [n_items, dim]."""
        sources = {name: self.get_buffer(f"features_{name}") for name in self.modalities} | {ID: self.embedding}
        projected = {name: projection(sources[name]) for name, projection in self.projections.items()}
        items = torch.stack(list(projected.values()), dim=1)
        fused = [operator(items) for operator in self.operators.values()]
        views = {VIEWS: torch.stack(fused + (list(projected.values()) if self.single else []))}
        return views if self.history is None else views | {HISTORY: self.history}


def _choose(catalogue: Catalogue, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Name the modalities to use. Raises `DataError` when the catalogue lacks one."""
    available = tuple(catalogue.features)
    for name in wanted or ():
        if name not in available:
            raise DataError(f"the catalogue has no modality {name!r}; it has {', '.join(available) or 'none'}")
    return available if wanted is None else tuple(wanted)
