"""No private tensor, history or id of a person is in any message of a run."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from tessera.client.private_state import Store
from tessera.client.recommend import Personal
from tessera.common.registry.backbones import BACKBONES
from tessera.deploy.executors import inline
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


@pytest.mark.parametrize("nodes", [3, 14])
@pytest.mark.parametrize("backbone", BACKBONES)
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
