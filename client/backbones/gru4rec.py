"""Scores items by a recurrent network over the history (GRU4Rec, Hidasi et al. 2016), on top of what History says.

q_u = History's query + W s_u + b, with s_u the network's state after the last event shown; events enter as rows of the history
view. W and b are zero at the start, where it scores exactly as History does.
"""

from torch import Tensor

from tessera.client.backbones.sequences import Sequential, gated_recurrence
from tessera.common.protocol.tensors import Tensors
from tessera.common.registry.sequences import GRU4RecSettings


class GRU4Rec(Sequential):
    """History's query, and what the network adds to it."""

    settings: GRU4RecSettings

    @property
    def dropped(self) -> int:
        """The inputs, and the states."""
        return 2

    def states(self, shared: Tensors, events: Tensor, kept: Tensor | None) -> Tensor:
        """Go from event to event."""
        if kept is None:
            return gated_recurrence(shared, "gru4rec", events)
        return gated_recurrence(shared, "gru4rec", events * kept[:, 0]) * kept[:, 1]
