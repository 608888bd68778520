"""Scores items by self-attention over the history (SASRec, Kang & McAuley 2018), on top of what History says.

q_u = History's query + W s_u + b, with s_u the blocks' state at the last event shown; events enter as rows of the history view,
with a vector for their place. W and b are zero at the start, where it scores exactly as History does: what is learnt is what a
history tells beyond a sum. Dropout is `local.history_mask`, drawn by user and event: the same in any company.
"""

from torch import Tensor

from tessera.client.backbones.base import BackboneInput
from tessera.client.backbones.history import History
from tessera.client.backbones.sequences import Windows, last, read_out, self_attention
from tessera.client.per_person.layers import shared_network, shared_rows
from tessera.common.protocol.messages import HISTORY
from tessera.common.protocol.tensors import Tensors
from tessera.common.registry.sequences import SASRecSettings


class SASRec(History):
    """History's query, and what attention adds to it."""

    settings: SASRecSettings

    def query(self, given: BackboneInput) -> Tensor:
        """Add what is read out at the last event."""
        windows = Windows.of(given.histories, self.settings.length)
        events = shared_rows(given.sent[HISTORY], windows.items)
        shared = {name: value for name, value in given.sent.items() if name.startswith("sasrec_")}
        return super().query(given) + shared_network(self._network, shared, events, windows.mask)

    def _network(self, shared: Tensors, events: Tensor, mask: Tensor) -> Tensor:
        """From events [n_users, length, dim] to what is added to queries, [n_users, dim]."""
        inputs = events + shared["sasrec_places"][: events.shape[1]]
        states = self_attention(shared, "sasrec", inputs, mask, self.settings.blocks, self.settings.heads)
        return read_out(shared, "sasrec", last(states, mask))
