"""Takes part in the secure sums of a run: keeps the secrets of an epoch in the device's folder, and answers for them.

private/RUN/secure-sums.bin   the secrets of the run's last epoch, which the next one overwrites

The file is written before anything is sent that follows from it: a device that is killed and forgot that it answered could
answer the same ask twice.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from tessera.client.device_folder import DeviceFolder
from tessera.client.owner.rules import Sum
from tessera.client.transforms import Origin, Stage
from tessera.common.errors import DataError, PolicyRefused, SecureSumError, SecureSumRefused
from tessera.common.privacy.masked_noise import MaskedNoise
from tessera.common.protocol.masked.masking import GRADIENTS, MASKED, terms, to_values
from tessera.common.protocol.masked.stages import StageMessage, only
from tessera.common.protocol.messages import Task
from tessera.common.protocol.signed.statements import roster_hash
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.common.secure.device import SecureDevice
from tessera.common.secure.device_state import load, save
from tessera.common.secure.fixed_point import Layout, Words
from tessera.common.secure.keys import NODE_KEY_FILE
from tessera.common.secure.messages import Delivery, KeysRequest, Roster, UnmaskRequest
from tessera.common.secure.roster import Policy
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import PRIVATE, read_bytes, write_bytes

log = logging.getLogger("tessera.device")
FILE = "secure-sums.bin"


class DeviceSums:
    """The secure sums of one run on one device, which has `people` and insists on `policy`."""

    def __init__(self, folder: DeviceFolder, run: str, people: int, policy: Policy) -> None:
        self.folder, self.run, self.people, self.policy = folder, run, people, policy
        self._path = folder.private(run) / FILE
        self._device: SecureDevice | None = None

    def answer(self, message: StageMessage) -> StageMessage:
        """Do what a stage asks. Raises `SecureSumError`; then nothing has changed."""
        stages: dict[str, Callable[[Sequence[bytes]], list[bytes]]] = {
            "keys": self._announce,
            "roster": self._share,
            "delivery": self._receive,
            "unmask": self._unmask,
        }
        found = stages[message.stage](message.messages)
        self.save()
        return replace(message, messages=tuple(found))

    def sum(self) -> Sum:
        """In which sum the server sees an answer at most. Raises `SecureSumRefused` where there is no group yet."""
        device = self._current()
        if device.roster is None or not device.present:
            raise SecureSumRefused("the keys of this epoch are not here")
        if self.people > device.announcement.people:
            raise SecureSumRefused(
                "people have come since this epoch's keys were made: they take part from the next one on"
            )
        there = [one for at, one in enumerate(device.roster.members) if device.present[at] and at != device.place]
        others = {member.fingerprint: member.people for member in there}
        return Sum(device.roster.people(device.present), sum(device.present), masked=True, others=others)

    @property
    def everyone(self) -> str:
        """A hash of the announcements of all devices that this one shares an epoch with. Raises `SecureSumRefused`."""
        roster = self._current().roster
        if roster is None:
            raise SecureSumRefused("the keys of this epoch are not here")
        return roster_hash(roster.everyone)

    def mask(self, task: Task, update: Update, shared: str, inputs: Tensors) -> Update:
        """The update as it may leave the device: all that every update has is masked, other parts are as they were.

        It must not be sent before `save` has returned.
        """
        assert task.masking
        device, agreed, ask = self._current(), terms(task, shared, inputs), task.masking.asks[0]
        if device.announcement.request.epoch != task.masking.epoch:
            raise SecureSumRefused("the keys of this epoch are not here")
        values, salt = to_values(update, agreed), self._salt(task)
        noise = self._noise(task, agreed.layout, sum(device.present))
        upload = device.mask(ask, agreed.task, agreed.tensors, values, agreed.layout, salt, noise)
        return Update(parts=update.parts).put(MASKED, (upload,))

    def _salt(self, task: Task) -> int:
        """What rounding is drawn by: a secret, or in a simulation what can be repeated."""
        if self.folder.simulated:
            return counter_rng.key("secure-rounding", task.settings.seed, task.round, self.folder.folder.name)
        return secrets.randbits(63)

    def _noise(self, task: Task, layout: Layout, n: int) -> Words:
        """This device's part of the noise on a sum of n devices: on the gradients, which a sum of training has alone."""
        noise, specs = MaskedNoise.of(task.settings.privacy), [one for one in layout if one.name.startswith(GRADIENTS)]
        if noise is None or not specs:
            return {}
        secret = secrets.token_bytes(32)
        if self.folder.simulated:  # so that it can be repeated, and hides nothing
            secret = f"noise {task.settings.seed} {task.round} {self.folder.folder.name}".encode()
        return noise.draw(specs, self.people, n, secret)

    def save(self) -> None:
        """Write down what this device has done."""
        if self._device is not None:
            write_bytes(self._path, save(self._device), PRIVATE)

    def _announce(self, messages: Sequence[bytes]) -> list[bytes]:
        request, before = KeysRequest.read(only(messages)), self._load()
        if request.run != self.run:
            raise SecureSumRefused("the request for keys is for another run than its message")
        if before and before.announcement.request == request and before.roster is None:
            self._device = before
        elif before and before.announcement.request.epoch >= request.epoch:
            raise SecureSumRefused("this epoch, or a later one, has begun before")
        else:
            key = node_key(self.folder)
            self._device = SecureDevice.announce(request, self.people, key, self.policy)
        return [self._device.announcement.write()]

    def _share(self, messages: Sequence[bytes]) -> list[bytes]:
        """The device's shares for a group, whose roster may come with a list of all devices' keys."""
        beside = messages[1] if len(messages) == 2 else b""
        return [self._current().share(Roster.read(messages[0] if beside else only(messages)), beside).write()]

    def _receive(self, messages: Sequence[bytes]) -> list[bytes]:
        self._current().receive(Delivery.read(only(messages)))
        return []

    def _unmask(self, messages: Sequence[bytes]) -> list[bytes]:
        """A reply to each request; an empty one where it is refused, which is no reason to refuse the others."""
        device, replies = self._current(), []
        for message in messages:
            try:
                replies.append(device.unmask(UnmaskRequest.read(message)).write())
            except (SecureSumError, PolicyRefused) as error:
                log.error("a sum is not unmasked: %s", error)
                replies.append(b"")
        return replies

    def _current(self) -> SecureDevice:
        if (device := self._load()) is None:
            raise SecureSumRefused("the keys of this epoch are not here")
        return device

    def _load(self) -> SecureDevice | None:
        if self._device is None and self._path.exists():
            self._device = load(read_bytes(self._path), self.policy)
        return self._device


@dataclass(frozen=True)
class Mask:
    """Hides an update under masks, in the place of a number format: the last step before it leaves the device."""

    sums: DeviceSums
    task: Task
    shared: str
    inputs: Tensors
    name = "mask"
    stage: Stage = "device"

    def __call__(self, update: Update, origin: Origin) -> Update:
        """Mask it."""
        return self.sums.mask(self.task, update, self.shared, self.inputs)


def node_key(folder: DeviceFolder) -> ec.EllipticCurvePrivateKey:
    """The device's private key, by which it also proves itself to the server; `tessera federate join` makes it. That of a
    simulated device can be repeated. Raises `DataError` where there is none."""
    if folder.simulated:
        number = counter_rng.key("node-key", folder.folder.name)
        return ec.derive_private_key(1 + number % 2**63, ec.SECP384R1())
    path = folder.folder / NODE_KEY_FILE
    try:
        key = load_ssh_private_key(read_bytes(path), password=None)
    except (OSError, ValueError) as error:
        raise DataError(f"secure sums need the device's key, and {path} cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DataError(
            f"{path} is no elliptic-curve key; remove it and its .pub, join, and have the new one registered"
        )
    return key
