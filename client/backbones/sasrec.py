"""Scores items by self-attention over the history (SASRec, Kang & McAuley 2018), on top of what History says.

q_u = History's query + W s_u + b, with s_u the blocks' state at the last event shown; events enter as rows of the history view,
with a vector for their place. W and b are zero at the start, where it scores exactly as History does: what is learnt is what a
history tells beyond a sum.
"""

from torch import Tensor

from tessera.client.backbones.sequences import Sequential, self_attention
from tessera.common.protocol.tensors import Tensors
from tessera.common.registry.sequences import SASRecSettings


class SASRec(Sequential):
    """History's query, and what attention adds to it."""

    settings: SASRecSettings

    @property
    def dropped(self) -> int:
        """The inputs, and what each half of a block adds."""
        return 1 + 2 * self.settings.blocks

    def states(self, shared: Tensors, events: Tensor, kept: Tensor | None) -> Tensor:
        """Attend to the events so far, each at its place."""
        inputs = events + shared["sasrec_places"][: events.shape[1]]
        return self_attention(shared, "sasrec", inputs, self.settings.blocks, self.settings.heads, kept)
