"""Scores items by what is common about them and by a table of each user's own (FedRAP, Li, Long & Zhou 2024)."""

import math

import torch
from torch import Tensor

from tessera.client.backbones.base import Backbone, BackboneInput, Parameter
from tessera.client.kernels.personal_tables import size_and_distance
from tessera.common.registry.backbones import FedRAPSettings


class FedRAP(Backbone):
    """score_ui = head_u . (Fbar_ui + D_ui) + bias_u, D_u [n_items, dim] private.

    The loss grows with the common items' absolute size (`l1_weight`) and falls as D_u and the common items differ; the
    difference is bounded, or the loss would have no minimum. Both set in by tanh(round / 10): computed from the round, for
    a coefficient multiplied in place by tanh(0) stays 0 for ever.
    """

    settings: FedRAPSettings

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Name the head, its bias and the personal items, [n_items, dim] a user: keep `batch_users` small."""
        return {"head": Parameter((dim,), scale=0.1), "bias": Parameter((1,)), "items": Parameter((n_items, dim))}

    def scores(self, given: BackboneInput) -> Tensor:
        """Add the personal items to the common ones and apply the head."""
        head = given.private["head"]
        own = torch.bmm(given.private["items"], head[:, :, None])[:, :, 0]
        return given.routed.scores(head) + own + given.private["bias"]

    def penalty(self, given: BackboneInput, round: int) -> Tensor:
        """l1_weight * mean |Fbar_u| - difference_weight * mean (x^2 / (1 + x^2)) with x = D_u - Fbar_u, [n_users]."""
        common = given.routed.items()
        own = given.private["items"]
        if given.histories.cold_items is not None:  # no training may touch these
            common, own = common[:, ~given.histories.cold_items], own[:, ~given.histories.cold_items]
        pull = size_and_distance(own, common, self.settings.l1_weight, self.settings.difference_weight)
        return math.tanh(round / 10) * pull
