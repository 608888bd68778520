"""Trains one adapter, whose average the server teaches what each class answers in public (TAKFL, Morafah et al. 2024)."""

from tessera.client.methods.fedit import FedIT


class TAKFL(FedIT):
    """On the device it is FedIT. What it adds is on the server, see `tessera.server.adapters.distillation`."""
