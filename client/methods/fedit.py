"""Trains one adapter that is averaged in every round (FedIT, Zhang et al. 2024)."""

from tessera.client.adapters.pq_lora import LOCAL
from tessera.client.methods.sft import SFT


class FedIT(SFT):
    """As SFT, from the average of the devices of the same class: before it arrives a device answers with its own."""

    uploads = LOCAL
    receives = LOCAL
