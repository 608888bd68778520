"""No private tensor, history or id of a person is in any message of a run."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from tessera.client.app import device_app
from tessera.client.private_state import Store
from tessera.client.recommend import Personal
from tessera.common.protocol.messages import refused, split_answers, unpack_task
from tessera.common.protocol.updates import Update, unpack_update
from tessera.common.registry.backbones import BACKBONES
from tessera.deploy.executors import inline
from tessera.deploy.executors.run import run_job
from tessera.deploy.job import Job
from tessera.server.app import serve
from tests.deploy.test_executors import SGD, assert_same_run, silent
from tests.support.catalogues import small_job

pytestmark = pytest.mark.integration


class Wiretap(inline.InlineGrid):
    """The inline grid, keeping every message of the run as bytes."""

    tapped: ClassVar[list[bytes]] = []

    def _handle(self, message):
        reply = super()._handle(message)
        for one in (message, reply):
            self.tapped.append(b"".join(part.deflate() for part in get_all_nested_objects(one).values()))
        return reply


@pytest.mark.parametrize(("backbone", "nodes"), [("history", 3), *((backbone, 14) for backbone in BACKBONES)])
def test_no_message_holds_a_private_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, nodes: int
) -> None:
    """Also with one person a device: what is in a message then is in no sum with anybody's."""
    Wiretap.tapped = []
    monkeypatch.setattr(inline, "InlineGrid", Wiretap)
    loss = {"history": "softmax", "fcf": "squares"}.get(backbone, "bce")
    job = small_job(tmp_path, "run", nodes, local={"backbone": backbone, "loss": loss, "learning_rate": 0.05})
    inline.execute(job, lambda line: None)
    said = b"".join(Wiretap.tapped)
    assert len(Wiretap.tapped) >= 2 * nodes * 6
    assert b"views" in said  # the tap works

    # What rounds to a few bytes, such as zeros, would be found anywhere.
    secrets = [(name, secret) for name, secret in _secrets(job.devices) if len(set(secret)) >= 6 or "row" in name]
    assert len(secrets) > 100
    for name, secret in secrets:
        assert secret not in said, name


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run over gRPC, in secure sums, as three devices have them by default."""
    job = small_job(tmp_path_factory.mktemp("masked"), "grpc", 3, rounds=2, server=SGD)
    assert run_job(job, "grpc", silent).rounds == 2
    return job


@pytest.fixture(scope="module")
def plain(masked: Job) -> tuple[Job, list[Update]]:
    """The same run in one process without masks, and all that its devices answered."""
    answers: list[Update] = []

    class Listening(inline.InlineGrid):
        def _handle(self, message: Message) -> Message:
            reply = super()._handle(message)
            task, _, _ = unpack_task(message.content)
            answers.extend(
                unpack_update(content)
                for content in split_answers(task, reply.content).values()
                if not refused(content)
            )
            return reply

    job = small_job(masked.run_dir.parent, "inline", 3, rounds=2, server=SGD)
    serve(Listening(device_app(job.devices[0].parent), 3), job.settings, job.catalogue, job.run_dir, resume=False)
    return job, answers


def test_a_run_over_grpc_under_masks_is_the_run_in_one_process_without(
    masked: Job, plain: tuple[Job, list[Update]]
) -> None:
    assert_same_run(plain[0].run_dir, masked.run_dir, 2e-4)
    states = [path for device in masked.devices for path in device.glob("private/*/secure-sums.bin")]
    assert [path.stat().st_mode & 0o777 for path in states] == [0o600] * 3


def test_nothing_of_a_person_or_of_one_device_is_in_the_servers_files(
    masked: Job, plain: tuple[Job, list[Update]]
) -> None:
    """State, logs, checkpoints and metrics, all read as bytes. What a device would have answered is known from the run without
    masks, which begins with the same views: its statistics, and its gradients of the first round."""
    job = masked
    own = {device / name for device in job.devices for name in ("secure-sums.bin", "node.key")}
    files = [
        path for path in job.run_dir.rglob("*") if path.is_file() and not _of_a_device(path.relative_to(job.run_dir))
    ]
    assert {"state.db", "server.log", "serverapp.log", "run.log", "metrics.jsonl", "server.key"} <= {
        p.name for p in files
    }
    assert not own & set(files)
    said = b"".join(path.read_bytes() for path in files)
    told = [(name, secret) for name, secret in _secrets(job.devices) if len(set(secret)) >= 6 or "row" in name]
    secrets = [
        (name, secret) for name, secret in told if sum(map(bool, secret)) >= 6
    ]  # not what any file of zeros holds
    assert len(secrets) > 100
    for device in job.devices:
        personal = Personal.open(device)
        counts = torch.from_numpy(personal.device.split(personal.task.settings).counts())
        for dtype in (torch.float32, torch.float64, torch.int64, torch.int32):
            secrets.append((f"item counts of {device.name}", counts.to(dtype).numpy().tobytes()))
        (state,) = (device / "private").glob("*/secure-sums.bin")
        secrets.append((f"the seed of all masks of {device.name}", state.read_bytes()[4:20]))
        secrets.append((f"the key of {device.name}", (device / "node.key").read_bytes()[100:200]))
        assert state.read_bytes()[4:20] in b"".join(path.read_bytes() for path in device.rglob("*") if path.is_file())
    trained = [update for update in plain[1] if update.gradients][: len(job.devices)]
    counted = [update for update in plain[1] if update.counts]
    tables = [table for update in trained for table in update.gradients.values()]
    tables += [table for update in counted for table in update.counts.values()]
    rows = [row for table in tables for row in table.reshape(-1, table.shape[-1])[::3] if row.count_nonzero() >= 4]
    assert len(rows) > 100
    for row in rows:
        secrets += [
            ("one device's answer", row.to(dtype).numpy().tobytes()) for dtype in (torch.float32, torch.float64)
        ]
    for name, secret in secrets:
        assert secret not in said, name


def _of_a_device(path: Path) -> bool:
    """Whether a file of a run on one machine is a device's: its folder, what its node and its workers keep and say."""
    return path.parts[0] == "devices" or any(part.startswith(("node-", "workers")) for part in path.parts)


def _secrets(devices: tuple[Path, ...]):
    """Every user's row of every private tensor in the formats of the wire, their history as numbers, their id."""
    for folder in devices:
        personal = Personal.open(folder)
        state = Store(personal.device.private(personal.task.run)).load(0, before=10**6)
        assert state is not None
        split = personal.device.split(personal.task.settings)
        weights = personal.weights()
        for row, user in enumerate(split.users):
            tensors = {name: value[row] for name, value in (state.parameters | state.optimizer).items()}
            tensors["weights"] = torch.tensor(weights[user])
            for name, value in tensors.items():
                if value.numel() >= 4 and value.abs().max() > 0:
                    for dtype in (torch.float32, torch.float16, torch.float64):
                        yield f"{name} of {user}", value.to(dtype).numpy().tobytes()
            history = torch.from_numpy(split.train_items[split.offsets[row] : split.offsets[row + 1]])
            if len(history) >= 3:
                for dtype in (torch.int64, torch.int32, torch.float32):
                    yield f"history of {user}", history.to(dtype).numpy().tobytes()
            chosen = torch.zeros(split.n_items)
            chosen[history] = 1
            for dtype in (torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool):
                yield f"history of {user}, as a row", chosen.to(dtype).numpy().tobytes()
            yield f"id of {user}", user.encode()
