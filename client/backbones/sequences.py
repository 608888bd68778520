"""Cuts histories into windows for models that read events one after the other, and runs such models on what was sent.

Windows are padded at their end, so that an event's place does not depend on what comes after it.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, pad

from tessera.client.backbones.base import BackboneInput
from tessera.client.backbones.history import History
from tessera.client.histories import Histories
from tessera.client.per_person.layers import shared_network, shared_rows
from tessera.common.protocol.messages import HISTORY
from tessera.common.protocol.tensors import Tensors
from tessera.common.registry.sequences import GRU4RecSettings


@dataclass(frozen=True)
class Windows:
    """The last events that are shown of each user, oldest first: `items` [n_users, length], and where there is one, `mask`
    [n_users, length]."""

    items: Tensor
    mask: Tensor

    @classmethod
    def of(cls, histories: Histories, length: int) -> "Windows":
        """At most `length` events of each user."""
        shown = histories.shown > 0
        owners, items = histories.owners[shown], histories.items[shown]
        counts = torch.bincount(owners, minlength=len(histories))
        starts = counts.cumsum(0) - counts
        place = (
            torch.arange(len(owners), device=owners.device) - starts[owners] - (counts - length).clamp(min=0)[owners]
        )
        kept = place >= 0
        width = max(1, min(length, int(counts.max()) if len(counts) else 1))
        table = items.new_zeros(len(histories), width)
        mask = torch.zeros(len(histories), width, dtype=torch.bool, device=items.device)
        at = owners[kept], place[kept]
        table[at], mask[at] = items[kept], True
        return cls(table, mask)


class Sequential(History):
    """History's query, and what a network that all share reads out of its state at a user's last event.

    Shared tensors are named by the backbone: NAME_read is the read-out, the rest is the network's.
    """

    settings: GRU4RecSettings

    @abstractmethod
    def states(self, shared: Tensors, events: Tensor, mask: Tensor) -> Tensor:
        """The network's states after each of the events [n_users, length, dim], of that shape, from its tensors alone."""

    def query(self, given: BackboneInput) -> Tensor:
        """Add what is read out at the last event."""
        windows = Windows.of(given.histories, self.settings.length)
        events = shared_rows(given.sent[HISTORY], windows.items)
        shared = {name: value for name, value in given.sent.items() if name.startswith(f"{self.settings.name}_")}
        return super().query(given) + shared_network(self._added, shared, events, windows.mask)

    def _added(self, shared: Tensors, events: Tensor, mask: Tensor) -> Tensor:
        """What is added to queries, [n_users, dim]."""
        return _mapped(shared, f"{self.settings.name}_read", last(self.states(shared, events, mask), mask))


def last(states: Tensor, mask: Tensor) -> Tensor:
    """The state at each user's last event, [n_users, dim], of `states` [n_users, length, dim]; zero for who has none."""
    at = mask.to(states.dtype) - pad(mask, (0, 1))[:, 1:].to(states.dtype)
    return (states * at[:, :, None]).sum(1)


def self_attention(sent: Tensors, prefix: str, inputs: Tensor, mask: Tensor, blocks: int, heads: int) -> Tensor:
    """SASRec's blocks (Kang & McAuley 2018) over `inputs` [n_users, length, dim], to states of that shape.

    x <- x + Attention(LN(x)), x <- x + W_2 relu(W_1 LN(x)), and a LayerNorm at the end. An event sees itself and those before.
    The parameters are in `sent`, below names that begin with `prefix`; `mask` [n_users, length] says where there are events.
    """
    users, length, dim = inputs.shape
    earlier = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
    visible = earlier & mask[:, None, :] | torch.eye(length, dtype=torch.bool, device=inputs.device)

    def split(value: Tensor) -> Tensor:
        return value.view(users, length, heads, dim // heads).transpose(1, 2)

    state = inputs
    for block in range(blocks):
        at = f"{prefix}_{block}"
        seen = _normed(sent, f"{at}_norm", state)
        query, key, value = (split(_mapped(sent, f"{at}_{name}", seen)) for name in ("query", "key", "value"))
        logits = (query @ key.mT / (dim // heads) ** 0.5).masked_fill(~visible[:, None], -torch.inf)
        found = torch.softmax(logits, dim=-1) @ value
        state = state + _mapped(sent, f"{at}_out", found.transpose(1, 2).reshape(users, length, dim))
        inner = torch.relu(_mapped(sent, f"{at}_first", _normed(sent, f"{at}_norm2", state)))
        state = state + _mapped(sent, f"{at}_second", inner)
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
