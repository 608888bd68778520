"""Decides how much each view counts for a user, from the user's history as seen through that view."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from tessera.client.aspects.groups import GroupMaps
from tessera.client.histories import Histories
from tessera.client.kernels.log_totals import LogTotals
from tessera.client.per_person.gradients import Outer, Whole
from tessera.client.per_person.meeting import adds_up, meet

SCALE, BIAS = "router.scale", "router.bias"


def router_shapes(n_views: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one user's router, which starts at zero: all views count alike."""
    return {SCALE: (n_views, dim), BIAS: (n_views,)}


def pool(histories: Histories, views: Tensor) -> Tensor:
    """Mean of each user's shown items in each view, [n_users, n_views, dim], from `views` [n_views, n_items, dim]."""
    return histories.pooled(views) / histories.sizes()[:, None, None]


def route(private: dict[str, Tensor], pooled: Tensor, prior: Tensor | None = None) -> Tensor:
    """Weights of the views, [n_users, n_views], rows sum to 1 (FedVLR Eq. 3).

    phi_u judges each view by the user's own history pooled in it: w_u = softmax_j(scale_uj . LN(pooled_uj) / sqrt(dim)
    + bias_uj), with scale [n_users, n_views, dim] and bias [n_users, n_views] private. A `prior` [n_users, n_views] is added to
    what the softmax is of.
    """
    dim = pooled.shape[-1]
    logits = (private[SCALE] * layer_norm(pooled, (dim,))).sum(-1) / dim**0.5 + private[BIAS]
    return torch.softmax(logits if prior is None else logits + prior, dim=1)


def side_by_side(views: Tensor) -> Tensor:
    """The same views [n_views, n_items, dim], an item's rows of all views side by side in memory: what products go over."""
    return views.transpose(0, 1).contiguous().transpose(0, 1)


def by_item(views: Tensor) -> Tensor:
    """Views [n_views, n_items, dim] as a table [n_items, n_views dim], itself and no copy where they lie side by side."""
    return views.transpose(0, 1).flatten(1)


@dataclass(frozen=True)
class Routed:
    """Views and each user's weights for them: the personalised items Fbar_u = sum_j w_uj F_j (Eq. 4), never written out.

    `views` is [n_views, n_items, dim], `weights` [n_users, n_views]. `gates` [n_users, dim] say how much each dimension of a
    query counts for a user; None: all alike. `groups` are the maps of users' groups, through which queries see items.
    """

    views: Tensor
    weights: Tensor
    gates: Tensor | None = None
    groups: GroupMaps | None = None

    def scores(self, query: Tensor) -> Tensor:
        """Inner products of each user's query with the personalised items, [n_users, n_items].

        `query` is [n_users, dim]. One matrix product for all users:
        sum_j w_uj (F_j q_u) = [w_u1 q_u, ..., w_uG q_u] . [F_1, ..., F_G].
        """
        left = self.factors(query)

        def products(views: Tensor) -> Tensor:
            return left.flatten(1) @ by_item(views).T

        def adds(gradient: Tensor, into: Tensor) -> None:
            by_item(into).addmm_(gradient.T, left.detach().flatten(1))

        return meet(products, (self.views,), lambda gradient: [Outer(gradient, left.detach(), axis=1)], adds)

    @property
    def adds_up(self) -> bool:
        """Whether gradients of the views are being added up; ordinary differentiation of scores needs a table of them."""
        return adds_up(self.views)

    def log_totals(self, factors: Tensor, excluded: Tensor | None) -> Tensor:
        """The logarithm of the sum of exp of scores, by the `factors` of their query, over items that are not `excluded`
        [n_items], [n_users], without a table of all scores; where gradients are added up."""
        left = factors.flatten(1)
        found = LogTotals(left.detach(), by_item(self.views.detach()), excluded)

        def adds(gradient: Tensor, into: Tensor) -> None:
            found.add_items(gradient, by_item(into))

        return meet(lambda views: found.attached(left), (self.views,), None, adds)

    def factors(self, query: Tensor) -> Tensor:
        """What of each user is multiplied with the views of an item, [n_users, n_views, dim]: w_uj q_u."""
        query = query if self.gates is None else query * self.gates
        query = query if self.groups is None else self.groups.seen(query)
        return self.weights[:, :, None] * query[:, None, :]

    def each(self, query: Tensor, items: Tensor) -> Tensor:
        """Inner products of each user's query in each view, [n_users, n_views, dim], with some items [n_asked] in that view:
        [n_users, n_views, n_asked]."""

        def products(views: Tensor) -> Tensor:
            return torch.einsum("ugd,gkd->ugk", query, views[:, items])

        def terms(gradient: Tensor) -> list[Outer]:
            n_views, n_items, _ = self.views.shape
            left = gradient.new_zeros(*gradient.shape[:2], n_items).index_add(2, items, gradient)
            one = torch.eye(n_views, dtype=gradient.dtype, device=gradient.device)
            right = one[None, :, :, None] * query.detach()[:, :, None]  # row (u, g) is user u's query, in view g alone
            return [Outer(left.flatten(0, 1), right.flatten(0, 1), axis=1)]

        return meet(products, (self.views,), terms)

    def squared_norms(self) -> Tensor:
        """Squared lengths of the personalised items, [n_users, n_items]: |Fbar_ui|^2 = sum_jk w_uj w_uk F_ji . F_ki."""
        pairs = self.weights[:, :, None] * self.weights[:, None, :]

        def products(views: Tensor) -> Tensor:
            return pairs.flatten(1) @ torch.einsum("gnd,hnd->ghn", views, views).flatten(0, 1)

        def terms(gradient: Tensor) -> list[Outer]:
            own = torch.einsum("ug,gnd->und", self.weights.detach(), self.views.detach())
            return [Outer(self.weights.detach(), 2 * gradient[:, :, None] * own, axis=0)]

        return meet(products, (self.views,), terms)

    def items(self) -> Tensor:
        """The personalised items written out, [n_users, n_items, dim]."""

        def mixed(views: Tensor) -> Tensor:
            return torch.einsum("ug,gnd->und", self.weights, views)

        return meet(mixed, (self.views,), lambda gradient: [Outer(self.weights.detach(), gradient, axis=0)])

    def mapped(self, weight: Tensor) -> Tensor:
        """The personalised items after a linear map [n_out, dim] that all share, [n_users, n_items, n_out].

        The map goes over the views once for all users.
        """

        def mixed(views: Tensor, weight: Tensor) -> Tensor:
            return torch.einsum("ug,gnh->unh", self.weights, views @ weight.T)

        def terms(gradient: Tensor) -> list[Outer | Whole]:
            own = torch.einsum("ug,gnd->und", self.weights.detach(), self.views.detach())
            by_views = Outer(self.weights.detach(), gradient @ weight.detach(), axis=0)
            return [by_views, Whole(gradient.mT @ own)]

        return meet(mixed, (self.views, weight), terms)
