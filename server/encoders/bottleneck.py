"""Adapts features by a narrow layer beside them (Houlsby et al. 2019, arXiv:1902.00751), for encoders of which only the last
vectors are at hand."""

import torch
from torch import Tensor, nn

from tessera.common.registry.content_encoders import BottleneckSettings
from tessera.server.encoders.base import ContentEncoder, ContentInputs


class Bottleneck(ContentEncoder):
    """x -> x + W_2 gelu(W_1 x + b_1) + b_2, with W_2 and b_2 zero at the start."""

    def __init__(self, settings: BottleneckSettings, inputs: ContentInputs) -> None:
        super().__init__(settings, inputs)
        width = inputs.features.shape[1]
        self.down, self.up = nn.Linear(width, settings.hidden), nn.Linear(settings.hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Add what the narrow layer says."""
        added: Tensor = self.up(torch.nn.functional.gelu(self.down(features)))
        return features + added
