"""The policy of devices that are laid out from one dataset on one machine, to try a federation: their people's data lie there
together anyway, and are often few."""

from collections.abc import Iterable
from pathlib import Path

from tessera.client.device_folder import POLICY
from tessera.client.owner.policy import Policy, write_policy

NOTE = """\
# For a trial: this device was laid out beside others from one dataset, and answers in sums over any number of people.
# A device of its own has stricter defaults: remove this file, and they are written.
"""


def answer_for_few(folders: Iterable[Path], operator: str = "") -> None:
    """Give devices that have no policy yet one that asks for no number of people, and takes any newcomer: whoever laid them out
    knows them all, or is the `operator` who signed for them. Raises `StorageError`."""
    for folder in folders:
        if not (folder / POLICY).exists():
            write_policy(folder, Policy(people=1, newcomers="any", operator=operator), NOTE)
