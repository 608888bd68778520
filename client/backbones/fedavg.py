"""FedAvg (McMahan et al. 2017) with a local head: the items are shared, a linear head over them stays on the device."""

from torch import Tensor

from client.backbones.base import Backbone, Parameter
from client.histories import Histories
from client.router import Routed
from common.protocol import Tensors


class FedAvg(Backbone):
    """score_ui = head_u . Fbar_ui + bias_u."""

    def parameters(self, dim: int) -> dict[str, Parameter]:
        """Name the head [dim], small and random at the start, and its bias."""
        return {"head": Parameter((dim,), scale=0.1), "bias": Parameter((1,))}

    def scores(self, private: dict[str, Tensor], sent: Tensors, histories: Histories, routed: Routed) -> Tensor:
        """Apply each user's own head."""
        return routed.scores(private["head"]) + private["bias"]
