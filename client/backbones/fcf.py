"""FCF (Ammad-ud-din et al. 2019): collaborative filtering for implicit feedback, the user's factor solved on the device."""

from torch import Tensor

from tessera.client.backbones.base import Backbone, BackboneInput, Parameter, quadratic
from tessera.common.config.settings import LocalSettings


class FCF(Backbone):
    """score_ui = p_u . Fbar_ui, p_u in closed form for the items as they are; use it with the loss `squares`."""

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Nothing to keep: the user's factor p_u [dim] follows from the history and the items."""
        return {}

    def scores(self, given: BackboneInput) -> Tensor:
        """Multiply the factors out."""
        return given.routed.scores(given.private["user"])

    def solved(self, given: BackboneInput, settings: LocalSettings) -> dict[str, Tensor]:
        """Solve for the factor: the least confidence-weighted squares over the whole catalogue."""
        return {"user": quadratic(given, settings)}
