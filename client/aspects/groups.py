"""Divides people into groups that have a map of the items each (PerPEFT), and lets a query see items through its group's map.

Group c's items are F (I + M_c): a basis that all share, and a small map of the group's own (GROUP_MAPS in
`tessera.common.protocol.messages`), so that a query q scores as (q + q M_c^T) . F. Of M_c^T [dim, dim] the first `rank` rows
are learnt, those that read the first numbers of a query, and the others are zero. Maps start at zero: who has just been put
into a group scores as before. What comes back is dense, with zeros for other groups, so that under secure sums nobody hears
who is in which.

A person's group is private state, as everything that is learnt about them: it is decided on the device from training events
alone, once, and stays.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from tessera.client.aspects.facets import BlockSums
from tessera.client.histories import Histories, histories
from tessera.client.per_person.gradients import Outer
from tessera.client.per_person.meeting import meet
from tessera.client.private_state import PrivateState
from tessera.common.config.federation import GroupSettings
from tessera.common.data.interactions import Split
from tessera.common.errors import DataError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.messages import BLOCKS, GROUP_CENTRES, GROUP_STATES, HISTORY, VIEWS
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.common.utils import counter_rng

GROUP = "group"
"""Name of the private tensor [n_users, 1] that says which group a user is in; below 0: none yet."""
GIVEN = "groups.csv"
"""The device's own file of users and groups, for groups that are given."""


@dataclass(frozen=True)
class GroupMaps:
    """The maps of all groups, one below the other [count * rank, dim], and each user's group [n_users], below 0 for none."""

    maps: Tensor
    groups: Tensor
    count: int

    def seen(self, query: Tensor) -> Tensor:
        """Queries [n_users, dim] after the users' own maps: q + q M_c^T, with M_c^T the rows of c."""
        rank = len(self.maps) // self.count
        member = one_hot(self.groups + 1, self.count + 1)[:, 1:].to(query)
        own = (member[:, :, None] * query[:, None, :rank]).flatten(1)
        return query + meet(lambda maps: own @ maps, (self.maps,), lambda found: [Outer(own.detach(), found, axis=0)])


def states(known: Histories, table: Tensor) -> Tensor:
    """What people's histories say of them: the direction of their sum in the history view, [n_users, dim]; zero for none."""
    return normalize(known.total(table.detach()), dim=1)


@torch.no_grad()
def chosen(known: Histories, sent: Tensors, settings: GroupSettings) -> Tensor:
    """The group of each user, [n_users], by what was sent and the events that are known; -1 for who has none.

    `cohesion`: the block in which the user's items are most alike. `states`, `mixture`: the nearest of the centres that
    people's sums found, of equally near ones the first. `random`: drawn by user.
    """
    table = sent[HISTORY] if HISTORY in sent else sent[VIEWS].mean(0)
    if settings.by == "cohesion":
        found = BlockSums(known, table, sent[BLOCKS]).cohesion().argmax(1)
    elif settings.by_sums:
        found = (states(known, table) @ sent[GROUP_CENTRES].to(table).T).argmax(1)
    else:
        found = counter_rng.mix(counter_rng.key("group"), known.keys).remainder(settings.count)
    return torch.where(known.lengths() > 0, found, -1)


def assigned(state: PrivateState, people: Split, sent: Tensors, settings: GroupSettings, folder: Path) -> PrivateState:
    """The state of people with their groups in it, those who had none until now: once people are divided."""
    if not settings.count or GROUP_CENTRES not in sent or bool((state.parameters[GROUP] >= 0).all()):
        return state
    table, before = sent[VIEWS], state.parameters[GROUP]
    if settings.by == "given":
        found = torch.tensor(_given(folder, people.users, settings.count), device=before.device)
    else:
        found = chosen(histories(people).to(table.device, table.dtype), sent, settings)
    own = torch.where(before < 0, found[:, None].to(before), before)
    return replace(state, parameters={**state.parameters, GROUP: own})


def _given(folder: Path, users: tuple[str, ...], count: int) -> list[int]:
    """The groups that the device's own file gives its users. Raises `DataError` that names file and user."""
    path = folder / GIVEN
    try:
        with path.open(newline="", encoding="utf-8") as file:
            known = {row["user"]: int(row["group"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError):
        raise DataError(f"{path} is no table of user and group, which groups.by given needs") from None
    for user in users:
        if not 0 <= known.get(user, -1) < count:
            raise DataError(f"{path} gives {user!r} no group from 0 to {count - 1}")
    return [known[user] for user in users]


def people_of_groups(state: PrivateState, settings: GroupSettings) -> Tensor:
    """How many of these people are in each group, [n_groups]."""
    groups = state.parameters[GROUP][:, 0].long()
    return torch.bincount(groups[groups >= 0], minlength=settings.count).float()


def lloyd_sum(people: Split, inputs: Tensors, shares: bool = False) -> Update:
    """What people add to a step that finds centres: for each of them [n_groups, dim] the sum of the states nearest to it and,
    in the last column, how many they are (Lloyd). One person's would be their state.

    With `shares` a state counts for all centres by a softmax of its products with them: the step of a mixture of von
    Mises-Fisher densities (Banerjee et al. 2005), whose concentration is the centres' length.
    """
    table, centres = inputs[GROUP_STATES], inputs[GROUP_CENTRES]
    known = histories(people).to(table.device, table.dtype)
    own = states(known, table)
    near = own @ centres.T
    member = near.softmax(1) if shares else one_hot(near.argmax(1), len(centres)).to(table)
    member = member * (known.lengths() > 0).to(table)[:, None]
    found = torch.cat([member.T @ own, member.sum(0)[:, None]], 1)
    return Update(sums=MetricSums({"users": float((known.lengths() > 0).sum())}), counts={GROUP_STATES: found})
