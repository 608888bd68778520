"""Adapts features by a small network beside a frozen encoder, over what its layers hold of each item (IISAN, Fu et al. 2024,
arXiv:2404.02059): no gradient goes through the encoder, whose states are cached.

Where a modality's states were not kept (`tessera data encode --hidden`), its features are the only state there is.
"""

import torch
from torch import Tensor, nn

from tessera.common.data.hidden import load_hidden, standardised
from tessera.common.registry.content_encoders import IISANSettings
from tessera.server.encoders.base import ContentEncoder, ContentInputs


class IISAN(ContentEncoder):
    """s_0 = B_0(h_0), s_l = B_l(m_l s_(l-1) + (1 - m_l) h_l) over the states h_l; x -> x + W s_L, with W zero at the start.

    B_l(h) = h + U_l gelu(D_l h) are bottlenecks, m_l = sigmoid(g_l) learnt gates, one half at the start. The published network
    starts as a mixture of layers, which throws away that the last one is a good start; W does not.
    """

    hidden: Tensor

    def __init__(self, settings: IISANSettings, inputs: ContentInputs) -> None:
        super().__init__(settings, inputs)
        features = inputs.features
        found = load_hidden(inputs.folder, inputs.modality, len(features)) if inputs.folder else None
        states = features[:, None] if found is None else standardised(found).to(features)
        self.register_buffer("hidden", states, persistent=False)
        n_states, width = states.shape[1:]
        self.down = nn.ModuleList(nn.Linear(width, settings.hidden) for _ in range(n_states))
        self.up = nn.ModuleList(nn.Linear(settings.hidden, width) for _ in range(n_states))
        self.gates = nn.ParameterList(torch.zeros(()) for _ in range(n_states - 1))
        self.out = nn.Linear(width, features.shape[1])
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Add what the network beside the encoder says."""
        state = torch.zeros_like(self.hidden[:, 0])
        for level, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            own = self.hidden[:, level]
            if level:
                gate = torch.sigmoid(self.gates[level - 1])
                own = gate * state + (1 - gate) * own
            state = own + up(torch.nn.functional.gelu(down(own)))
        added: Tensor = self.out(state)
        return features + added
