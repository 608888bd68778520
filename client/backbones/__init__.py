"""Prediction models by name. A new one is one file here and one line below (and its name in `LocalSettings.backbone`)."""

from client.backbones.base import Backbone, Parameter
from client.backbones.fedavg import FedAvg
from client.backbones.history import History

BACKBONES: dict[str, Backbone] = {"fedavg": FedAvg(), "history": History()}

__all__ = ["BACKBONES", "Backbone", "Parameter"]
