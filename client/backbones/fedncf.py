"""FedNCF (Perifanis & Efraimidis 2022): a private user vector, and a shared neural network over user and item."""

import torch
from torch import Tensor

from client.backbones.base import Backbone, Given, Parameter


class FedNCF(Backbone):
    """score_ui = MLP([p_u, Fbar_ui]), the MLP of NCF (He et al. 2017) with two hidden layers."""

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Name the user vector p_u [dim], small and random at the start."""
        return {"user": Parameter((dim,), scale=0.1)}

    def scores(self, given: Given) -> Tensor:
        """Apply the shared network to every pair: [n_users, n_items, dim] in memory, so keep `block` small.

        The first layer is linear in the personalised item, so the views pass through it once for all users.
        """
        sent, routed = given.sent, given.routed
        items = torch.einsum("ug,gnh->unh", routed.weights, routed.views @ sent["ncf_item"].T)
        user = given.private["user"] @ sent["ncf_user"].T + sent["ncf_bias"]
        hidden = torch.relu(torch.relu(items + user[:, None]) @ sent["ncf_hidden"].T + sent["ncf_hidden_bias"])
        scores: Tensor = hidden @ sent["ncf_out"]
        return scores
