"""What a device lets the server know of its tasks: a gradient of a small frozen model, blurred (FedMosaic Eq. 1 to 3).

Similar tasks pull the same frozen model the same way, so cosines of signatures say who can learn from whom. The gradient is
averaged over the batches of a round, decayed over rounds, clipped, noised, and only a part of its coordinates is sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tessera.common.protocol.signature_mask import kept_coordinates
from tessera.common.registry.methods import SignatureSettings
from tessera.common.utils import counter_rng

DECAYED = "signature"
"""What the decayed gradient is called among a device's private tensors."""


@dataclass(frozen=True)
class Signature:
    """The decayed gradient [size] of the rounds so far: private state, like the router."""

    settings: SignatureSettings
    decayed: Tensor | None = None

    def after(self, gradients: Tensor) -> "Signature":
        """With one more round, from the `gradients` [n_batches, size] seen in it (Eq. 2). The first round counts in full."""
        mean, newest = gradients.mean(0), self.settings.decay
        return replace(self, decayed=mean if self.decayed is None else (1 - newest) * self.decayed + newest * mean)

    def sanitised(self, mask: Tensor, secret: int, round: int) -> Tensor:
        """What may leave the device, [n_kept] (Eq. 3): clipped, noised, and only the coordinates in `mask`.

        `secret` is a number that only this device knows: noise drawn from the run's seed could be taken off by the server.
        """
        if self.decayed is None:
            raise ValueError("there is no signature before the first round")
        limit = self.settings.limit
        clipped = self.decayed * (limit / self.decayed.norm().clamp(min=limit)) if limit else self.decayed
        noise = counter_rng.normal(counter_rng.key("signature-noise", secret, round), torch.arange(len(clipped)))
        noised: Tensor = clipped + self.settings.noise * noise.to(clipped)
        return noised[mask]


def sign(
    settings: SignatureSettings,
    kept: Mapping[str, Tensor],
    gradients: Tensor,
    seed: int,
    noise_key: int,
    round: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The signature that leaves after a round with `gradients` [n_batches, size], and what of it stays, from what was `kept`.

    `seed` is the run's: it draws which coordinates all clients send.
    """
    now = Signature(settings, kept.get(DECAYED)).after(gradients)
    sent = now.sanitised(kept_coordinates(gradients.shape[1], seed, settings.kept), noise_key, round)
    return sent, {} if now.decayed is None else {DECAYED: now.decayed}


def last_layer_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient of a batch's loss by a last layer's parameters, flat [size] float32 (Eq. 1), whatever the model is in."""
    gradients = torch.autograd.grad(loss, list(parameters))
    return torch.cat([gradient.flatten().float() for gradient in gradients])
