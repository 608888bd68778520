"""Trains as DITTO does; the server then teaches the average what all devices answer in public (PerAda, Xie et al. 2024)."""

from tessera.client.methods.ditto import Ditto


class PerAda(Ditto):
    """On the device it is DITTO: the common branch, half of the steps, then the personal one near it as it came.

    What it adds is on the server, see `tessera.server.adapters.distillation`.
    """
