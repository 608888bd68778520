"""Prediction models by name.

A new one is one file here, one line below, and one in `tessera.common.registry.backbones`: what it needs.
"""

from tessera.client.backbones.base import Backbone, BackboneInput, LazyScores, Parameter
from tessera.client.backbones.fcf import FCF
from tessera.client.backbones.fedavg import FedAvg
from tessera.client.backbones.fedncf import FedNCF
from tessera.client.backbones.fedrap import FedRAP
from tessera.client.backbones.history import History
from tessera.client.backbones.pfedrec import PFedRec

BACKBONES: dict[str, Backbone] = {
    "fedavg": FedAvg(),
    "fcf": FCF(),
    "fedncf": FedNCF(),
    "pfedrec": PFedRec(),
    "fedrap": FedRAP(),
    "history": History(),
}

__all__ = ["BACKBONES", "Backbone", "BackboneInput", "LazyScores", "Parameter"]
