"""The settings of what hides a person: see `tessera.common.config.settings`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tessera.common.registry.component import Amount, Fraction, FrozenSettings, Rate
from tessera.common.secure.groups import LARGEST, SMALLEST, USUAL


class PrivacySettings(FrozenSettings):
    """What hides a person: secure sums, and what each upload goes through before it is added to others'. Clipping and noise
    apply to the gradients of training."""

    secure: Literal["auto"] | bool = "auto"
    """Whether devices mask what they answer, so that the server learns the sums of groups of them and nothing of any one
    (docs/privacy.md). `auto` does where they are asked over a network, at least three of them, and answer in sums."""
    group: Annotated[int, Field(ge=SMALLEST, le=LARGEST)] = USUAL
    """Devices whose answers are added up under masks together, about; fewer than 16 are one group."""

    clip: Amount = 0.0
    """Largest Euclidean norm of a person's gradients of a round, all tensors together; 0 does not clip."""
    clip_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of people whose gradients are to be no longer than the clip. It begins at `clip` and is found while the run trains
    from what people say by one noised bit each (Andrew et al. 2021); 0: it stays."""
    noise: Literal["local", "distributed"] = "local"
    """local: each person adds noise of their own. distributed: the devices of a secure sum add parts of one noise, so that
    their sum has no more than it needs."""
    noise_multiplier: Amount = 0.0
    """Standard deviation of the noise on each coordinate as a multiple of `clip`: of each person, or of a secure sum."""
    noise_share: Fraction = 0.5
    """Share of a secure sum's devices whose parts of the noise are enough: the others may be lost, or tell theirs. By the
    protocol a server that lies about who answered can leave half of them out."""
    delta: Annotated[Rate, Field(gt=0)] = 1e-5
    """The delta at which epsilon is told."""
    max_epsilon: Annotated[Amount, Field(gt=0)] | None = None
    """The run ends before a round after which epsilon would be larger; empty: none does."""

    @model_validator(mode="after")
    def _noise_of_known_size(self) -> "PrivacySettings":
        if self.noise_multiplier and not self.clip:
            raise ValueError("noise_multiplier is a multiple of clip: set clip too")
        if self.clip_quantile and not self.clip:
            raise ValueError("clip_quantile moves a clip: set clip to what it begins with")
        if self.noise_multiplier and self.noise == "distributed" and self.secure is not True:
            raise ValueError(
                "distributed noise hides nobody before it is added up: set secure to true, or noise to local"
            )
        return self

    @property
    def distributed(self) -> bool:
        """Whether devices add parts of one noise."""
        return self.noise == "distributed" and self.noise_multiplier > 0
