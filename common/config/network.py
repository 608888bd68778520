"""Chooses the formats of runs over a network, where a device may be one person's, and sends as much as one of hundreds."""

from typing import Any

from tessera.common.config.effects import no_secure_sums, without_effect
from tessera.common.config.settings import Settings

EXPLAINED = 0.99
"""Share of the squares of the views' gradients that comes up."""


def network_formats(settings: Settings) -> dict[str, Any]:
    """What gradients come up as where nobody has set it: along few directions of the views, under masks in 16 bits, else in 8.

    Nothing where it was set, in part or in whole, nor where nobody has measured what is lost: with noise, or with a defence.
    """
    said = settings.wire.model_fields_set & {"gradients", "explained"}
    idle = without_effect(settings)
    if said or "wire" in idle or settings.privacy.noise_multiplier or settings.federation.defence.name != "none":
        return {}
    masked = settings.privacy.secure is not False and not no_secure_sums(settings)
    formats: dict[str, Any] = {"gradients": "int16" if masked else "int8"}
    return {"wire": formats if "wire.explained" in idle else formats | {"explained": EXPLAINED}}
