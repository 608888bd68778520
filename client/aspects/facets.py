"""Weighs blocks of the views' dimensions by how much a person goes by each, and adds up what finds such blocks.

Kinds of people who go by different sides of items have the same mean taste and, added up, the same second moments: what tells
them apart is how alike a person's items are in one block of dimensions. With z_i items around the mean of all, L events of a
person, S their sum and Sigma_k the items' covariance in block k, *cohesion in a block* is

    e_uk = (|S_k|^2 - sum_i |z_ik|^2) / sqrt(2 L (L - 1) tr Sigma_k^2),

of mean 0 and variance 1 where events are drawn by chance. Gates follow from it in closed form: nothing is learnt, and nothing
but the number of each dimension's block is sent for them (BLOCKS in `tessera.common.protocol.messages`).
"""

from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tessera.client.histories import Histories, histories
from tessera.common.config.settings import Gate
from tessera.common.data.interactions import Split
from tessera.common.errors import DataError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.messages import ASPECTS, BLOCKS, HISTORY, VIEWS, FacetStep
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update


class BlockSums:
    """What a person's events add up to in blocks of the dimensions of `table` [n_items, dim], as they count.

    `blocks` [dim] numbers each dimension's block. All of it is [n_users, n_blocks], or [n_blocks] where it is the items'.
    """

    def __init__(self, known: Histories, table: Tensor, blocks: Tensor) -> None:
        table = table - table.mean(0)
        member = one_hot(blocks.long()).to(table)  # [dim, n_blocks]
        self.squares, fourths = (
            table.new_zeros(len(known)).index_add(0, known.owners, known.shown**power) for power in (2, 4)
        )
        self.alike = known.total(table).square() @ member
        own = (table.square() @ member)[known.items] * (known.shown**2)[:, None]
        self.apart = table.new_zeros(len(known), member.shape[1]).index_add(0, known.owners, own)
        covariance = table.T @ table / len(table)
        self.traces = covariance.diagonal() @ member
        self.spreads = ((member.T @ covariance.square()) * member.T).sum(1)
        self.pairs = (self.squares**2 - fourths).clamp(min=0)

    def cohesion(self) -> Tensor:
        """e_u [n_users, n_blocks]; 0 for who has no two events."""
        scale = (2 * self.pairs[:, None] * self.spreads).sqrt()
        return torch.where(scale > 0, (self.alike - self.apart) / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0)

    def shrinkage(self) -> Tensor:
        """James-Stein by block (1 - L tr Sigma_k / |S_k|^2)+, [n_users, n_blocks]: a block whose sum is no longer than chance
        makes it counts nothing."""
        chance = self.squares[:, None] * self.traces
        return (1 - chance / self.alike.clamp(min=torch.finfo(chance.dtype).tiny)).clamp(min=0)


@torch.no_grad()
def gates(known: Histories, sent: Tensors, blocks: Tensor, gate: Gate, sharpness: float) -> Tensor:
    """How much each dimension counts for each person, [n_users, dim], from the history that is shown and no more.

    `softmax` is n_blocks times the softmax of `sharpness` times cohesion, `james-stein` has no constant. Who goes by no block
    more than chance has 1 everywhere. Cohesion is seen in the history view or, where there is none, in the views' mean.
    """
    table = sent[HISTORY] if HISTORY in sent else sent[VIEWS].mean(0)
    found = BlockSums(known, table.detach(), blocks)
    own = found.shrinkage() if gate == "james-stein" else len(found.traces) * (sharpness * found.cohesion()).softmax(1)
    own = torch.where(own.any(1, keepdim=True), own, 1)
    return own[:, blocks.long()]


def asked_sum(people: Split, inputs: Tensors) -> Update:
    """What people add to the step that is asked for by the inputs. Raises `DataError` where no step is."""
    for step in get_args(FacetStep):
        if (table := inputs.get(ASPECTS + step)) is not None and BLOCKS in inputs:
            known = histories(people).to(table.device, table.dtype)
            sums = MetricSums({"users": float(torch.count_nonzero(known.lengths()))})
            return Update(sums=sums, counts={ASPECTS + step: facet_sum(known, table, step, inputs[BLOCKS])})
    raise DataError("the server's task names no step in which sides of items are found")


def facet_sum(known: Histories, table: Tensor, step: FacetStep, blocks: Tensor) -> Tensor:
    """What people add to one step of finding blocks, [dim, dim], in the coordinates of `table` [n_items, dim].

    With y_u = S_u / sqrt(L): `spread` is sum_u y y', `independence` sum_u y (y^3)' (FastICA's step, Hyvarinen 1999), `together`
    sum_u (y^2 - 1)(y^2 - 1)', and `cohesion` has in the columns of block k sum_u r_uk M_u, with r_u = softmax e_u and
    M_u = (S S' - sum_i z_i z_i') / sqrt(2 L (L - 1)). One person's would be their taste, up to its sign.
    """
    if step == "cohesion":
        return _cohesion_sum(known, table, blocks)
    scaled = known.total(table) / known.norms()[:, None]
    left, right = {
        "spread": (scaled, scaled),
        "independence": (scaled, scaled**3),
        "together": (scaled**2 - 1, scaled**2 - 1),
    }[step]
    there = (known.lengths() > 0).to(table)[:, None]
    product: Tensor = (there * left).T @ right
    return product


def _cohesion_sum(known: Histories, table: Tensor, blocks: Tensor) -> Tensor:
    found = BlockSums(known, table, blocks)
    counts = found.cohesion().softmax(1) * torch.where(found.pairs > 0, (2 * found.pairs).rsqrt(), 0)[:, None]
    counts = counts[:, blocks.long()]  # [n_users, dim]
    totals, rows = known.total(table), table[known.items] * known.shown[:, None]
    return totals.T @ (counts * totals) - rows.T @ (counts[known.owners] * rows)
