"""People come to a device, and go, while a run goes on: with masks and without, the run takes them in and loses nobody else."""

from pathlib import Path

import pytest
from flwr.app import Context, Message

from tessera.client.people.events import People
from tessera.client.people.forget import forget
from tessera.client.private_state import Store
from tests.deploy.test_secure_runs import SECURE, Answer, carry_out, rounds
from tests.support.catalogues import small_job

N_NODES = 4


@pytest.mark.parametrize("privacy", [{}, SECURE], ids=["plain", "secure"])
def test_people_come_and_go_in_mid_run(tmp_path: Path, privacy: dict) -> None:
    """Before round 3 two people come to one device and one is forgotten on another; the first misses that round, in which the
    server hears of more people than it knew. From round 4 on all learn, also with whoever else is on their device."""
    job = small_job(tmp_path, "run", N_NODES, rounds=6, privacy=privacy)
    here, there = job.devices[0], job.devices[1]
    gone = People(there).users()[0]

    def changed(answer: Answer) -> Answer:
        def handle(message: Message, context: Context) -> Message:
            task = message.content.config_records.get("task", {})
            if (task.get("kind"), task.get("round")) == ("train", 3) and "zoe" not in People(here).users():
                for user in ("zoe", "yan"):
                    People(here).add_person(user)
                    for item in range(8):
                        People(here).add_event(user, f"i{item:03d}")
                forget(there, gone)
            return answer(message, context)

        return handle

    carry_out(job, changed)
    assert [line["users"] for line in rounds(tmp_path / "run")] == pytest.approx([14, 14, 9, 15, 15, 15])
    assert [line["nodes"] for line in rounds(tmp_path / "run")] == [4, 4, 3, 4, 4, 4]
    steps = {user: trained(here, user) for user in People(here).users()}
    learnt = 0 if privacy else 1  # without masks they learn of round 3 what it is, and the server leaves their sum out
    assert (steps.pop("zoe"), steps.pop("yan")) == (3 + learnt, 3 + learnt)
    assert set(steps.values()) == {5 + learnt}
    assert trained(there, gone) is None


def trained(folder: Path, user: str) -> float | None:
    """How many rounds a person has trained."""
    (store,) = (Store(path.parent) for path in (folder / "private").glob("*/run.json"))
    kept = store.find((user,), 10**6, 0)
    return None if kept is None else float(kept.optimizer["steps.user"][0])
