"""Scores items by a recurrent network over the history (GRU4Rec, Hidasi et al. 2016), on top of what History says.

q_u = History's query + W s_u + b, with s_u the network's state after the last event shown; events enter as rows of the history
view. W and b are zero at the start, where it scores exactly as History does.
"""

from torch import Tensor

from tessera.client.backbones.base import BackboneInput
from tessera.client.backbones.history import History
from tessera.client.backbones.sequences import Windows, gated_recurrence, last, read_out
from tessera.client.per_person.layers import shared_network, shared_rows
from tessera.common.protocol.messages import HISTORY
from tessera.common.protocol.tensors import Tensors
from tessera.common.registry.sequences import GRU4RecSettings


class GRU4Rec(History):
    """History's query, and what the network adds to it."""

    settings: GRU4RecSettings

    def query(self, given: BackboneInput) -> Tensor:
        """Add what is read out after the last event."""
        windows = Windows.of(given.histories, self.settings.length)
        events = shared_rows(given.sent[HISTORY], windows.items)
        shared = {name: value for name, value in given.sent.items() if name.startswith("gru4rec_")}
        return super().query(given) + shared_network(_network, shared, events, windows.mask)


def _network(shared: Tensors, events: Tensor, mask: Tensor) -> Tensor:
    """From events [n_users, length, dim] to what is added to queries, [n_users, dim]."""
    return read_out(shared, "gru4rec", last(gated_recurrence(shared, "gru4rec", events), mask))
