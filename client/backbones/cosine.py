"""Scores items by the cosine between an item and the user's history, both seen through the views: VLM2Rec's direct ranking.

z_u = sum_j w_uj mean_{k in history} F_jk + p_u and e_ui = sum_j w_uj F_ji over views of unit rows;
score_ui = cos(z_u, e_ui) / temperature.

Nothing in it belongs to an item but its contents, so it serves new items and other catalogues as they are. Under the loss
`next` it is trained by InfoNCE with the whole catalogue as negatives (VLM2Rec, arXiv 2603.17450, Eq. 3).
"""

from torch import Tensor
from torch.nn.functional import normalize

from tessera.client.backbones.base import Backbone, BackboneInput, Parameter
from tessera.client.router import pool
from tessera.common.registry.backbones import CosineSettings

SMALLEST = 1e-6
"""What squared lengths are at least, before they divide: opposite views may cancel in an item."""


class Cosine(Backbone):
    """score_ui = cos(z_u, e_ui) / temperature."""

    settings: CosineSettings

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Name the private vector p_u [dim], zero at the start."""
        return {"user": Parameter((dim,))}

    def scores(self, given: BackboneInput) -> Tensor:
        """Compare the personalised items with what of the history is shown."""
        pooled = pool(given.histories, given.routed.views)
        query = (given.routed.weights[:, :, None] * pooled).sum(1) + given.private["user"]
        lengths = given.routed.squared_norms().clamp(min=SMALLEST).sqrt()
        return given.routed.scores(normalize(query, dim=1)) / lengths / self.settings.temperature
