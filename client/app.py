"""Answers the server's messages: a task comes in, the device does it, an additive update goes out (Flower's ClientApp)."""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from tessera.client.base import Client
from tessera.client.device_folder import TensorsMissing, simulated_devices
from tessera.client.owner.owner import Owner
from tessera.client.published.catalogue import CatalogueOutdated
from tessera.client.recommendation import RecommendationClient
from tessera.client.secure.sums import DeviceSums, Mask
from tessera.client.transforms import Origin, transforms
from tessera.common.config.device import DeviceSettings
from tessera.common.errors import DataError, PolicyRefused, ProtocolError, SecureSumRefused, StorageError, TesseraError
from tessera.common.flower_internals.compact import opened
from tessera.common.protocol.masked.stages import RECORD as SECURE
from tessera.common.protocol.masked.stages import pack_stage, unpack_stage
from tessera.common.protocol.messages import (
    Task,
    catalogue_change,
    catalogue_outdated,
    in_answer_to,
    join_answers,
    missing_tensors,
    refusal,
    unpack_task,
)
from tessera.common.protocol.signed.statements import Statement, statement_of
from tessera.common.protocol.tensors import Tensors, array_bytes
from tessera.common.protocol.updates import ANSWERS, pack_update

log = logging.getLogger("tessera.device")


def device_app(devices: Path | None = None) -> ClientApp:
    """Build the app of a SuperNode, whose folder is `data-dir` of its node config; or, with `devices`, of a simulated node,
    whose folder is `node-<partition-id>` below it. Without either, a node that `flwr run` simulates finds its folder."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        beside = devices or _simulation(context)
        made = lambda settings: _kind(settings)(_folder(context, beside), simulated=beside is not None)  # noqa: E731
        content, form = opened(message.content)
        return Message(form(answer(content, made, simulated=beside is not None)), reply_to=message)

    for kind in (app.train, app.evaluate, app.query):
        kind()(handle)
    return app


def answer(
    content: RecordDict, device: Callable[[DeviceSettings | None], Client], simulated: bool = False
) -> RecordDict:
    """Carry out all that a message asks of a device, one after the other. What goes wrong is told to the server without naming
    a user: only what kind of trouble it is; what it says is in the device's own log.

    Raises `StorageError` where the device is `simulated`: the full disk is the run's own.
    """
    try:
        if SECURE in content:
            return _take_part(content, device)
        task, tensors, inputs = unpack_task(content)
        client = device(task.settings)
        client.renew(task, catalogue_change(content))
        owner = Owner.of(client)
        sums = device_sums(client, owner, task.run) if task.masking else None
        if owner.policy:
            roster = sums.everyone if sums else ""
            owner.believe(statement_of(content), Statement.of(task, client.shared(task, tensors), inputs, roster))
        answers = {one.kind: _answer(client, owner, one, tensors, inputs, sums) for one in task.asks()}
        if sums:
            sums.save()
        return join_answers(task, answers)
    except TensorsMissing as missing:
        return missing_tensors(str(missing))
    except CatalogueOutdated as outdated:
        return catalogue_outdated(outdated.held)
    except Exception as error:
        return _refused(error, simulated)


def _take_part(content: RecordDict, device: Callable[[DeviceSettings | None], Client]) -> RecordDict:
    """What a secure sum needs of a device beside its answers: keys, shares, and later what takes the masks off the sum."""
    message, client = unpack_stage(content), device(None)
    return pack_stage(device_sums(client, Owner.of(client), message.run).answer(message))


def device_sums(client: Client, owner: Owner, run: str) -> DeviceSums:
    """The device's part in the secure sums of a run."""
    return DeviceSums(client, run, client.people(), owner.sums(run))


def _answer(
    client: Client, owner: Owner, task: Task, tensors: Tensors | None, inputs: Tensors, sums: DeviceSums | None
) -> RecordDict:
    """The answer to one thing that is asked: what fails of a message costs no more than itself. Raises `TensorsMissing`."""
    try:
        granted = owner.check(client.own, task, inputs, sums.sum() if sums else None)
        update = granted.told(client.perform(task, tensors, granted.inputs))
        origin = Origin(task.settings.seed, task.round, simulated=client.simulated)
        last = Mask(sums, task, client.shared(task), inputs) if sums else None
        reply = pack_update(transforms(task.settings, last=last).apply("device", update, origin))
        reply[ANSWERS] = in_answer_to(task)
        owner.note(granted, update, array_bytes(reply))
        return reply
    except TensorsMissing:
        raise
    except Exception as error:
        return _refused(error, client.simulated)


def _refused(error: Exception, simulated: bool) -> RecordDict:
    """Log what went wrong, and say as much of it as a server may know."""
    if simulated and isinstance(error, StorageError):
        raise error
    if isinstance(error, TesseraError):
        log.error("%s", error)
    else:
        log.error("the server's task failed", exc_info=error)
    if isinstance(error, PolicyRefused):
        return refusal(f"refused by the device's policy: {error.kind}", error.kind)
    if isinstance(error, ProtocolError):  # says nothing but versions
        return refusal(str(error))
    kind = error.kind if isinstance(error, SecureSumRefused) else ""
    return refusal(f"{type(error).__name__} on the device; its own log says more", kind)


def _kind(settings: DeviceSettings | None) -> type[Client]:
    """Which kind of device a run needs; None is for a message of no task. PEFT is read only where adapters are trained: a
    device should start fast."""
    if settings is None or not settings.asks_questions:
        return RecommendationClient
    if settings.in_words:
        from tessera.client.language.client import TextClient

        return TextClient
    from tessera.client.qa_client import QAClient

    return QAClient


def _simulation(context: Context) -> Path | None:
    """Where the folders of the simulated nodes lie, of which this is one; None for a device, whose owner gave it a folder."""
    if "data-dir" in context.node_config or "partition-id" not in context.node_config:
        return None
    devices = simulated_devices(context.run_id)
    return devices if devices.is_dir() else None


def _folder(context: Context, devices: Path | None) -> Path:
    if devices is not None:
        return devices / f"node-{context.node_config['partition-id']}"
    if "data-dir" not in context.node_config:
        raise DataError(
            "this SuperNode has no data-dir in its node config; start it with `tessera federate join --data-dir D`; where "
            f"`flwr run` simulates it: {simulated_devices(context.run_id)} is not there, see that FLWR_HOME is the ServerApp's"
        )
    return Path(str(context.node_config["data-dir"]))


app = device_app()
