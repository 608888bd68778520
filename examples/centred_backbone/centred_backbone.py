"""A prediction model: a private vector for each person, against the items less what they all have in common."""

from torch import Tensor

from tessera.client.backbones import Backbone, BackboneInput, Parameter
from tessera.common.registry.backbones import BackboneSpec


class Centred(Backbone):
    """score_ui = p_u . (Fbar_ui - mean of Fbar_u): what makes an item stand out, and not what it shares with all others."""

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """The private vector p_u [dim], drawn small."""
        return {"user": Parameter((dim,), scale=0.1)}

    def scores(self, given: BackboneInput) -> Tensor:
        """Scores of the whole catalogue for every user, [n_users, n_items]."""
        scores = given.routed.scores(given.private["user"])
        return scores - scores.mean(1, keepdim=True)


SPEC = BackboneSpec("centred_backbone:Centred")
