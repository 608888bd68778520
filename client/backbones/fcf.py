"""Scores items by a user factor that the device solves for (FCF, Ammad-ud-din et al. 2019)."""

import torch
from torch import Tensor

from tessera.client.backbones.base import Backbone, BackboneInput, Parameter
from tessera.common.registry.backbones import FCFSettings


class FCF(Backbone):
    """score_ui = p_u . Fbar_ui, p_u in closed form for the items as they are; use it with the loss `squares`."""

    settings: FCFSettings

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Nothing to keep: the user's factor p_u [dim] follows from the history and the items."""
        return {}

    def scores(self, given: BackboneInput) -> Tensor:
        """Multiply the factors out."""
        return given.routed.scores(given.private["user"])

    def solved(self, given: BackboneInput) -> dict[str, Tensor]:
        """Solve for the factor: the least confidence-weighted squares over the whole catalogue."""
        return {"user": _solve(given, self.settings)}


def _solve(given: BackboneInput, settings: FCFSettings) -> Tensor:
    """Minimise sum_i c_ui (r_ui - p . Fbar_ui)^2 + ridge |p|^2 for every user, p [n_users, dim] (Hu, Koren & Volinsky 2008).

    c_ui is 1 + confidence for the user's events and 1 elsewhere, so the sum over the catalogue is one Gram matrix of the
    views for all users, plus an outer product for each event.
    """
    weights, views, people = given.routed.weights, given.routed.views, given.histories
    known = views if people.cold_items is None else views[:, ~people.cold_items]
    grams = torch.einsum("gnd,hne->ghde", known, known)
    system = torch.einsum("ug,uh,ghde->ude", weights, weights, grams)
    target = torch.zeros_like(system[:, 0])
    for start in range(0, len(people), 64):  # events of 64 users at a time: an outer product each is what costs memory
        events = torch.arange(
            int(people.offsets[start]), int(people.offsets[min(start + 64, len(people))]), device=views.device
        )
        events = events[people.shown[events] > 0]
        owners, rows = people.owners[events], views[:, people.items[events]]
        items = torch.einsum("eg,ged->ed", weights[owners], rows)
        system.index_add_(0, owners, settings.confidence * items[:, :, None] * items[:, None, :])
        target.index_add_(0, owners, (1 + settings.confidence) * items)
    system.diagonal(dim1=1, dim2=2).add_(settings.ridge)
    solution: Tensor = torch.linalg.solve(system, target)
    return solution
