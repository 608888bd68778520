"""Prediction models by name. A new one is one file here, one line below, and one in `common.backbones`: what it needs."""

from client.backbones.base import Backbone, Given, Parameter, Scored
from client.backbones.fcf import FCF
from client.backbones.fedavg import FedAvg
from client.backbones.fedncf import FedNCF
from client.backbones.fedrap import FedRAP
from client.backbones.history import History
from client.backbones.pfedrec import PFedRec

BACKBONES: dict[str, Backbone] = {
    "fedavg": FedAvg(),
    "fcf": FCF(),
    "fedncf": FedNCF(),
    "pfedrec": PFedRec(),
    "fedrap": FedRAP(),
    "history": History(),
}

__all__ = ["BACKBONES", "Backbone", "Given", "Parameter", "Scored"]
