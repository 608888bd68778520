"""What every client does: it is given a task by the server, does it with the private data of its device, and returns sums."""

from abc import ABC, abstractmethod

from tessera.client.device_folder import DeviceFolder
from tessera.client.owner.rules import Own
from tessera.common.protocol.messages import Task
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update


class Client(DeviceFolder, ABC):
    """A device's folder, and the work that is done in it."""

    @abstractmethod
    def people(self) -> int:
        """How many people are on this device. Raises `DataError`."""

    def renew(self, task: Task, change: bytes) -> None:
        """Take in what changed in the catalogue, where that came along with a task. Raises `CatalogueOutdated` where the
        task is of a later version than the device's. Who has no such versions looks when it does the task."""
        return None

    @abstractmethod
    def perform(self, task: Task, tensors: Tensors | None, inputs: Tensors) -> Update:
        """Do what the server asks. Raises `TensorsMissing` or `DataError`; private state changes only on success."""

    @abstractmethod
    def own(self, task: Task) -> Own:
        """Say what the device's owner has to know of a task: how many people are in what it returns."""
