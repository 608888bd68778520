"""The best round's model is kept on both sides, however long ago it was, and it is what people are recommended by."""

from pathlib import Path

import pytest
from flwr.app import Error, Message

from tessera.client.recommend import Personal
from tessera.common.protocol.messages import content_hash
from tessera.common.utils.atomic_files import read_tensors
from tessera.deploy.executors import inline
from tessera.deploy.executors.inline import CLIENT_APP_FAILED, InlineGrid
from tessera.deploy.job import Job
from tessera.server.app import serve
from tests.deploy.test_executors import silent
from tests.deploy.test_round_policy import carry_out, task_of
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics

# Steps this long overshoot soon: the best round comes early, and a long tail of worse ones after it.
OVERSHOOTING = {"server": {"learning_rate": 0.3}, "evaluation": {"every": 1, "ks": (10,), "patience": 6}}


def selected(job: Job) -> int:
    return int(read_metrics(job.run_dir)[-1]["selected_round"])


def recommended(job: Job) -> dict[str, list[tuple[str, float]]]:
    """What everybody is recommended, with the scores."""
    found = {}
    for folder in job.devices:
        personal = Personal.open(folder)
        for split, _ in personal.people():
            for user in split.users:
                found[user] = [(one.item, one.score) for one in personal.recommend(user, 5)[0]]
    return found


def checkpoints(job: Job) -> dict[int, Path]:
    return {int(path.stem.removeprefix("round-")): path for path in (job.run_dir / "checkpoints").iterdir()}


@pytest.mark.parametrize("checkpoint_every", [1, 4])
def test_after_a_worse_tail_the_best_round_is_still_there_and_recommended_by(
    tmp_path: Path, checkpoint_every: int
) -> None:
    """Everything equals a run that was stopped at that round."""
    federation = {"checkpoint_every": checkpoint_every}
    whole = small_job(tmp_path, "whole", 2, rounds=40, federation=federation, **OVERSHOOTING)
    inline.execute(whole, silent)
    best, last = selected(whole), read_metrics(whole.run_dir)[-1]["rounds"]
    assert last == best + 6, "it ran out of patience"
    assert {best, last} < checkpoints(whole).keys()
    assert len(checkpoints(whole)) <= 4, "the last three and the best"
    short = small_job(tmp_path, "short", 2, rounds=best, **OVERSHOOTING)
    inline.execute(short, silent)
    assert selected(short) == best
    kept, wanted = (content_hash(read_tensors(checkpoints(job)[best])[0]) for job in (whole, short))
    assert kept == wanted
    assert {Personal.open(folder).task.round for folder in (*whole.devices, *short.devices)} == {best}
    assert recommended(whole) == recommended(short)


def test_devices_hear_of_the_selected_round_once_and_only_where_it_is_news(tmp_path: Path) -> None:
    """The last evaluation's outcome is in no task; a run that ends on an earlier round has told it long ago, and devices that
    have heard of none recommend by the last one anyway."""
    for name, rounds, news in (("early", 40, False), ("late", 2, True), ("once", 1, False)):
        job, kinds = small_job(tmp_path, name, 2, rounds=rounds, **OVERSHOOTING), list[str]()

        def listen(question: Message, reply: Message, kinds: list[str] = kinds) -> list[Message]:
            kinds.append(task_of(question).kind)
            return [reply]

        carry_out(job, listen)
        assert kinds.count("select") == (2 if news else 0)
        assert {Personal.open(folder).task.round for folder in job.devices} == {selected(job)}


def test_a_device_that_misses_the_best_round_goes_on_recommending_by_its_own(tmp_path: Path) -> None:
    """It trains on, but is away whenever anybody evaluates after round 1; the state and the views of round 1 stay with it."""
    changes = {"evaluation": {"every": 1, "ks": (10,)}, "federation": {"clients_per_round": 2}}  # asked apart

    class Away(InlineGrid):
        def _handle(self, message: Message) -> Message:
            task = task_of(message)
            if message.metadata.dst_node_id == 2 and task.round > 1 and task.kind in ("evaluate", "select"):
                return Message(Error(CLIENT_APP_FAILED, "away"), reply_to=message)
            return super()._handle(message)

    job, short = (
        small_job(tmp_path, "run", 2, rounds=9, **changes),
        small_job(tmp_path, "short", 2, rounds=1, **changes),
    )
    grid = Away(inline.device_app(job.devices[0].parent), 2)
    serve(grid, job.settings, job.catalogue, job.run_dir, job.resume)
    inline.execute(short, silent)
    assert selected(job) >= 4, "after three evaluations without it, those that are left are everybody"
    assert [Personal.open(folder).task.round for folder in job.devices] == [selected(job), 1]
    there, wanted = recommended(job), recommended(short)
    away = Personal.open(job.devices[1]).people()[0][0].users
    assert {user: there[user] for user in away} == {user: wanted[user] for user in away}
