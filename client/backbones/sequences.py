"""Cuts histories into windows for models that read events one after the other, and runs such models on what was sent.

Windows are padded at their end, so that an event's place does not depend on what comes after it.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from tessera.client.backbones.base import BackboneInput
from tessera.client.backbones.history import History
from tessera.client.histories import Histories
from tessera.client.per_person.layers import shared_network, shared_rows
from tessera.common.protocol.messages import HISTORY
from tessera.common.protocol.tensors import Tensors
from tessera.common.registry.sequences import GRU4RecSettings
from tessera.common.utils import counter_rng


@dataclass(frozen=True)
class Windows:
    """The events that are read of each user, oldest first, and where: `items` [n_users, length] and, of each of the
    histories that begin a user's, how many of them it has, `ends` [n_users, histories of a user]."""

    items: Tensor
    ends: Tensor

    @classmethod
    def of(cls, histories: Histories, length: int) -> "Windows":
        """The last `length` events that are shown of each user; of histories cut within windows, those of the window, once
        for all of a user's."""
        cut = histories.cut
        per_user = 1 if cut is None else cut.per_user
        shown = histories.shown > 0
        owners, items = histories.owners[shown], histories.items[shown]
        counts = torch.bincount(owners, minlength=len(histories))
        if cut is None:
            skipped = (counts - length).clamp(min=0)
        else:
            events = torch.arange(len(shown), device=shown.device) - histories.offsets[:-1][histories.owners]
            early = shown & (events < cut.skipped[histories.owners])
            skipped = torch.bincount(histories.owners[early], minlength=len(histories))
        ends = (counts - skipped).view(-1, per_user)
        starts = counts.cumsum(0) - counts + skipped
        place = torch.arange(len(owners), device=owners.device) - starts[owners]
        longest = torch.zeros_like(ends, dtype=torch.bool)
        longest[torch.arange(len(ends)), ends.argmax(1)] = True
        kept = (place >= 0) & longest.flatten()[owners]
        table = items.new_zeros(len(ends), max(1, int(ends.max()) if len(ends) else 1))
        table[owners[kept] // per_user, place[kept]] = items[kept]
        return cls(table, ends)


class Sequential(History):
    """History's query, and what a network that all share reads out of its state at a user's last event.

    The network goes over a user's events once, however many beginnings of the history are asked for: what it says after an
    event depends on no later one. Shared tensors are named by the backbone: NAME_read is the read-out, the rest is the
    network's.
    """

    settings: GRU4RecSettings

    @property
    def window(self) -> int:
        """How many events are read at once."""
        return self.settings.length

    @property
    @abstractmethod
    def dropped(self) -> int:
        """At how many places the network drops numbers of its states in training."""

    @abstractmethod
    def states(self, shared: Tensors, events: Tensor, kept: Tensor | None) -> Tensor:
        """The network's states after each of the events [n_users, length, dim], of that shape, from its tensors alone.

        `kept` [n_users, dropped, length, dim] are the factors of dropout in training.
        """

    def query(self, given: BackboneInput) -> Tensor:
        """Add what is read out at each history's last event."""
        windows = Windows.of(given.histories, self.settings.length)
        events = shared_rows(given.sent[HISTORY], windows.items)
        kept = [] if given.salt is None or not self.settings.dropout else [self._kept(given, events, given.salt)]
        shared = {name: value for name, value in given.sent.items() if name.startswith(f"{self.settings.name}_")}
        added = shared_network(self._added, shared, events, windows.ends, *kept)
        return super().query(given) + added.flatten(0, 1)

    def _added(self, shared: Tensors, events: Tensor, ends: Tensor, kept: Tensor | None = None) -> Tensor:
        """What is added to queries, [n_users, histories of a user, dim]."""
        return _mapped(shared, f"{self.settings.name}_read", after(self.states(shared, events, kept), ends))

    def _kept(self, given: BackboneInput, events: Tensor, salt: int) -> Tensor:
        """Factors of dropout, drawn by user and number: 0, or as much more than 1 as keeps the mean."""
        rate, (users, length, dim) = self.settings.dropout, events.shape
        keys = given.histories.keys.view(users, -1)[:, 0]
        place, event, four = (torch.arange(size, device=keys.device) for size in (self.dropped, length, -(-dim // 4)))
        counters = keys[:, None, None, None], place[:, None, None], event[:, None], four
        draws = counter_rng.mix(counter_rng.key("dropout", salt), *counters).view(torch.int16)  # each hash makes four
        return (draws[..., :dim] >= (rate - 0.5) * 2**16).to(events.dtype) / (1 - rate)


def after(states: Tensor, ends: Tensor) -> Tensor:
    """The states after so many events, [n_users, n_ends, dim], of `states` [n_users, length, dim] and `ends` [n_users, n_ends];
    zero after none."""
    at = (ends - 1).clamp(min=0)[:, :, None].expand(-1, -1, states.shape[2])
    return states.gather(1, at) * (ends > 0)[:, :, None]


def self_attention(
    sent: Tensors, prefix: str, inputs: Tensor, blocks: int, heads: int, kept: Tensor | None = None
) -> Tensor:
    """SASRec's blocks (Kang & McAuley 2018) over `inputs` [n_users, length, dim], to states of that shape.

    x <- x + Attention(LN(x)), x <- x + W_2 relu(W_1 LN(x)), and a LayerNorm at the end. An event sees itself and those before.
    The parameters are in `sent`, below names that begin with `prefix`. `kept` [n_users, 1 + 2 blocks, length, dim] are factors
    of dropout: of the inputs, and of what each half of a block adds.
    """
    users, length, dim = inputs.shape
    later = torch.ones(length, length, dtype=torch.bool, device=inputs.device).triu(1)

    def split(value: Tensor) -> Tensor:
        return value.view(users, length, heads, dim // heads).transpose(1, 2)

    def dropped(place: int, value: Tensor) -> Tensor:
        return value if kept is None else value * kept[:, place]

    state = dropped(0, inputs)
    for block in range(blocks):
        at = f"{prefix}_{block}"
        seen = _normed(sent, f"{at}_norm", state)
        query, key, value = (split(_mapped(sent, f"{at}_{name}", seen)) for name in ("query", "key", "value"))
        logits = (query @ key.mT / (dim // heads) ** 0.5).masked_fill(later, -torch.inf)
        found = torch.softmax(logits, dim=-1) @ value
        mixed = _mapped(sent, f"{at}_out", found.transpose(1, 2).reshape(users, length, dim))
        state = state + dropped(2 * block + 1, mixed)
        inner = torch.relu(_mapped(sent, f"{at}_first", _normed(sent, f"{at}_norm2", state)))
        state = state + dropped(2 * block + 2, _mapped(sent, f"{at}_second", inner))
    return _normed(sent, f"{prefix}_norm", state)


def gated_recurrence(sent: Tensors, prefix: str, inputs: Tensor) -> Tensor:
    """A gated recurrent unit (Cho et al. 2014) over `inputs` [n_users, length, dim], to states of that shape."""
    weights = [sent[f"{prefix}_{name}"] for name in ("input", "state", "input_bias", "state_bias")]
    start = inputs.new_zeros(1, len(inputs), inputs.shape[2])
    states, _ = torch.gru(inputs, start, weights, True, 1, 0.0, False, False, True)
    return states


def _mapped(sent: Tensors, name: str, value: Tensor) -> Tensor:
    return linear(value, sent[name], sent[f"{name}_bias"])


def _normed(sent: Tensors, name: str, value: Tensor) -> Tensor:
    return layer_norm(value, value.shape[-1:], sent[f"{name}_gain"], sent[f"{name}_bias"])
