"""Kills a device (-9) at every change of a file that a round of training makes: `python -m tests.faults.killing_device FOLDER`.

FOLDER holds the device's people. The device trains for one round; then its second one is tried again and again.
"""

import shutil
import sys
from pathlib import Path

import torch

from tessera.client.recommendation import RecommendationClient
from tessera.common.config.device import DeviceSettings
from tessera.common.protocol.messages import HISTORY, VIEWS, Task
from tessera.common.protocol.tensors import content_hash
from tessera.common.utils.atomic_files import digest
from tests.faults.killing import forked, killed_everywhere
from tests.support.catalogues import small_settings

Files = dict[str, str]


def train(folder: Path, round: int) -> dict[str, str]:
    """One round of training, as a task of the server's; return hashes of the gradients that would leave."""
    device, draws = RecommendationClient(folder), torch.Generator().manual_seed(round)
    catalogue = device.catalogue()
    tensors = {
        VIEWS: torch.randn(2, len(catalogue), 8, generator=draws),
        HISTORY: torch.randn(len(catalogue), 8, generator=draws),
    }
    settings = DeviceSettings.of(small_settings(local={"batch_users": 5}))  # people in three files
    task = Task("train", "run", round, (1,), ("sum", "id"), catalogue.sha256, settings, content_hash(tensors))
    update = device.perform(task, tensors, {})
    return {name: content_hash({name: value}) for name, value in update.gradients.items()}


def files(folder: Path) -> Files:
    """All of a device's files by name, the half-written ones apart, with their hashes."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in paths}


def main(people: Path) -> None:
    """Print at how many changes the device was killed. Fails at the first kill that left anything torn."""
    before, whole, killed = (people.parent / name for name in ("before", "whole", "killed"))
    shutil.copytree(people, before)
    assert forked(lambda: train(before, 1))[0] == 0
    for folder in (whole, killed):
        shutil.copytree(before, folder)
    code, wanted = forked(lambda: train(whole, 2))
    assert code == 0
    old, new = files(before), files(whole)
    for last in killed_everywhere(killed, lambda: train(killed, 2)):
        torn = {name for name, content in files(killed).items() if content not in (old.get(name), new.get(name))}
        assert not torn, f"killed after {last} changes, the device has torn files: {torn}"
        code, found = forked(lambda: train(killed, 2))
        assert (code, found) == (0, wanted), f"killed after {last} changes, the device trains otherwise"
        assert files(killed) == new, f"killed after {last} changes, the device keeps other files"
        assert not list(killed.rglob(".*.tmp")), f"killed after {last} changes, the device leaves half-written files"
        shutil.rmtree(killed)
        shutil.copytree(before, killed)
    print(last + 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
