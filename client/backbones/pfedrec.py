"""Scores items that each user tunes after download, by a head of each user's own (PFedRec, Zhang et al. 2023)."""

import torch
from torch import Tensor

from tessera.client.backbones.base import Backbone, BackboneInput, Parameter


class PFedRec(Backbone):
    """score_ui = head_u . (Fbar_ui + tuned_ui) + bias_u.

    `tuned` is how far the user's own items have moved from what was downloaded; it starts at zero in every round. The
    gradient with respect to what was sent, summed over the epochs, is the items' delta over the local rate (Eq. 10), taken
    along the moving items. Evaluation uses the tuned items of the last round.
    """

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Name the head [dim], its bias, and the tuning [n_items, dim]: keep `batch_users` small."""
        tuned = Parameter((n_items, dim), kept=False)
        return {"head": Parameter((dim,), scale=0.1), "bias": Parameter((1,)), "tuned": tuned}

    def scores(self, given: BackboneInput) -> Tensor:
        """Apply each user's own head to their own items."""
        head = given.private["head"]
        own = torch.bmm(given.private["tuned"], head[:, :, None])[:, :, 0]
        return given.routed.scores(head) + own + given.private["bias"]

    def phases(self, names: list[str]) -> list[list[str]]:
        """Step the score function first, then the items."""
        return [[name for name in names if name != "tuned"], ["tuned"]]
