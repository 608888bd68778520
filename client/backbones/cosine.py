"""Scores items by the cosine between an item and the user's history, both seen through the views: VLM2Rec's direct ranking.

z_u = sum_j w_uj mean_{k in history} F_jk + p_u and e_ui = sum_j w_uj F_ji over views of unit rows;
score_ui = cos(z_u, e_ui) / temperature.

Nothing in it belongs to an item but its contents, so it serves new items and other catalogues as they are. Under the loss
`next` it is trained by InfoNCE with the whole catalogue as negatives (VLM2Rec, arXiv 2603.17450, Eq. 3).
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tessera.client.backbones.base import Backbone, BackboneInput, Comparison, Parameter
from tessera.client.router import pool
from tessera.common.registry.backbones import CosineSettings

SMALLEST = 1e-6
"""What squared lengths are at least, before they divide: opposite views may cancel in an item."""


class Cosine(Backbone):
    """score_ui = cos(z_u, e_ui) / temperature."""

    settings: CosineSettings

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Name the private vector p_u [dim], zero at the start, where there is to be one."""
        return {"user": Parameter((dim,))} if self.settings.private_vector else {}

    def scores(self, given: BackboneInput) -> Tensor:
        """Compare the personalised items with what of the history is shown."""
        pooled = pool(given.histories, given.routed.views)
        query = (given.routed.weights[:, :, None] * pooled).sum(1)
        query = query + given.private["user"] if self.settings.private_vector else query
        return given.routed.scores(normalize(query, dim=1) / self.settings.temperature) * _shorter(given)

    def alone(self, given: BackboneInput, items: Tensor) -> Tensor:
        """Compare the history in each view with items in that view, whose rows are of length 1."""
        return given.routed.each(normalize(pool(given.histories, given.routed.views), dim=2), items)

    def comparison(self, given: BackboneInput) -> Comparison:
        """Compare by all views, by each alone, and the history in each view with the personalised items."""
        everything = torch.arange(given.histories.n_items, device=given.routed.views.device)
        pooled = normalize(pool(given.histories, given.routed.views), dim=2)
        crossed = [given.routed.scores(one) * _shorter(given) for one in pooled.unbind(1)]
        fused = self.scores(given) * self.settings.temperature
        return Comparison(fused, self.alone(given, everything), torch.stack(crossed, dim=1))


def _shorter(given: BackboneInput) -> Tensor:
    """One over the lengths of the personalised items, [n_users, n_items]."""
    return given.routed.squared_norms().clamp(min=SMALLEST).rsqrt()
