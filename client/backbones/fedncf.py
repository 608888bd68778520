"""Scores items by a shared neural network over a private user vector and the item (FedNCF, Perifanis & Efraimidis 2022)."""

import torch
from torch import Tensor

from tessera.client.backbones.base import Backbone, BackboneInput, Parameter
from tessera.client.per_person.layers import shared_bias, shared_linear


class FedNCF(Backbone):
    """score_ui = MLP([p_u, Fbar_ui]), the MLP of NCF (He et al. 2017) with two hidden layers."""

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Name the user vector p_u [dim], small and random at the start."""
        return {"user": Parameter((dim,), scale=0.1)}

    def scores(self, given: BackboneInput) -> Tensor:
        """Apply the shared network to every pair: [n_users, n_items, dim] in memory, so keep `batch_users` small.

        The first layer is linear in the personalised item, so the views pass through it once for all users.
        """
        items, user = self._first(given)
        return self._rest(given, items + user[:, None])

    def pairs(self, given: BackboneInput, users: Tensor, items: Tensor) -> Tensor:
        """Apply the layers after the first to the pairs alone: a fifth of the catalogue where each event has 4 negatives."""
        first, user = self._first(given)
        rows = first.flatten(0, 1).index_select(0, users * first.shape[1] + items)
        return self._rest(given, rows + user.index_select(0, users), users)

    def _first(self, given: BackboneInput) -> tuple[Tensor, Tensor]:
        """The first layer's two halves: of the items [n_users, n_items, dim], and of the users [n_users, dim]."""
        sent, user = given.sent, shared_linear(given.private["user"], given.sent["ncf_user"])
        return given.routed.mapped(sent["ncf_item"]), shared_bias(user, sent["ncf_bias"])

    def _rest(self, given: BackboneInput, first: Tensor, owners: Tensor | None = None) -> Tensor:
        """Everything after the first layer's sum, [..., dim] to [...]; rows are of the users `owners`, or one a user."""
        sent, n_users = given.sent, len(given.histories)
        hidden = shared_linear(torch.relu(first), sent["ncf_hidden"], owners, n_users)
        hidden = torch.relu(shared_bias(hidden, sent["ncf_hidden_bias"], owners, n_users))
        return shared_linear(hidden, sent["ncf_out"], owners, n_users)
