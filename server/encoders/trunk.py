"""Keeps what an encoder's frozen blocks make of each content, so that a round runs the blocks from the first adapted one on.

A block that learns nothing, and stands below all that do, says the same of a text or a picture in every round. What it says is
kept in memory, as long as all of it takes at most `KEPT` bytes; above that every block runs every time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tessera.common.towers.pretrained import PictureTower, TextTower, Tokens, Tower

KEPT = 2**31
"""Bytes of memory that kept states may take."""


class Trunk:
    """An encoder's blocks below the first that is adapted: `read` runs them once for each content."""

    def __init__(self, tower: Tower, blocks: Sequence[nn.Module], n_contents: int) -> None:
        self._tower, self._blocks, self._n_contents = tower, tuple(blocks), n_contents
        self._states: dict[int, Tensor] = {}
        self._in_tuple = False

    @classmethod
    def of(cls, tower: Tower, n_contents: int) -> "Trunk":
        """Find the blocks of a Hugging Face encoder that nothing adapted comes before; there may be none."""
        stacks = [part for part in tower.model.modules() if isinstance(part, nn.ModuleList)]
        stack = max(stacks, key=len, default=())
        frozen = [not any(value.requires_grad for value in block.parameters()) for block in stack]
        first = frozen.index(False) if False in frozen else 0
        within = {id(value) for block in stack for value in block.parameters()}
        all_within = all(id(value) in within for value in tower.model.parameters() if value.requires_grad)
        known = isinstance(tower, TextTower | PictureTower) and all_within
        return cls(tower, list(stack)[:first] if known else (), n_contents)

    def clear(self) -> None:
        """Forget what was kept: the encoder moved to another device or precision."""
        self._states.clear()

    def read(self, places: Tensor, inputs: Any) -> Tensor:
        """What the encoder says of the contents at `places` [n], which are `inputs`: unit vectors, [n, width]."""
        if not self._blocks:
            return self._vectors(inputs)
        kept = [self._states.get(place) for place in places.tolist()]
        if all(state is not None for state in kept):
            states = pad_sequence([state for state in kept if state is not None], batch_first=True)
            with _standing_in(self._blocks, (states,) if self._in_tuple else states):
                return self._vectors(inputs)
        heard: list[Any] = []
        hook = self._blocks[-1].register_forward_hook(lambda _block, _inputs, output: heard.append(output))
        try:
            vectors = self._vectors(inputs)
        finally:
            hook.remove()
        self._in_tuple = isinstance(heard[0], tuple)
        self._keep(places, inputs, heard[0][0] if self._in_tuple else heard[0])
        return vectors

    def _vectors(self, inputs: Any) -> Tensor:
        vectors: Tensor = self._tower(inputs)
        return vectors

    def _keep(self, places: Tensor, inputs: Any, states: Tensor) -> None:
        """Keep a chunk's states [n, length, width], each as long as its text; nothing any more where all would be too many."""
        if states.nbytes / len(places) * self._n_contents > KEPT:
            self._blocks = ()
            self.clear()
            return
        whole = torch.full((len(places),), states.shape[1])
        lengths = inputs.mask.sum(1) if isinstance(inputs, Tokens) else whole
        for place, state, length in zip(places.tolist(), states, lengths.tolist(), strict=True):
            self._states[place] = state[:length].detach().clone()


@contextmanager
def _standing_in(blocks: Sequence[nn.Module], states: Any) -> Iterator[None]:
    """Until the end of the block each of `blocks` answers `states`, without a look at what it is given."""

    def answer(*_given: Any, **_named: Any) -> Any:
        return states

    for block in blocks:
        block.forward = answer
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
