"""Scores shared items by a linear head of each user's own (FedAvg, McMahan et al. 2017, with a local head)."""

from torch import Tensor

from tessera.client.backbones.base import Backbone, BackboneInput, Inner, Parameter


class FedAvg(Backbone):
    """score_ui = head_u . Fbar_ui + bias_u."""

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Name the head [dim], small and random at the start, and its bias."""
        return {"head": Parameter((dim,), scale=0.1), "bias": Parameter((1,))}

    def inner(self, given: BackboneInput) -> Inner:
        """The head and its bias."""
        return Inner(given.private["head"], given.private["bias"])

    def scores(self, given: BackboneInput) -> Tensor:
        """Apply each user's own head."""
        return given.routed.scores(given.private["head"]) + given.private["bias"]
