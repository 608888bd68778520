"""Faults that a published rival (GFMFR) was found to have, looked for here: who comes late learns, a broken table stops the
run, and groups do not collapse unnoticed."""

import logging
from pathlib import Path

import pytest

from tessera.client.people.events import People
from tessera.client.private_state import Store
from tessera.common.errors import RunError
from tessera.deploy.executors import inline
from tests.deploy.test_executors import SGD, silent
from tests.support.catalogues import small_job


def test_a_newcomer_learns_where_few_take_part_in_a_round(tmp_path: Path) -> None:
    changes = {"fraction": 0.3, "planted": True}
    job = small_job(tmp_path, nodes=2, rounds=2, **changes)
    inline.execute(job, silent)
    folder = job.devices[0]
    People(folder).take_in("newcomer", [("newcomer", item, 10 + item) for item in range(8)], None)
    inline.execute(small_job(tmp_path, nodes=2, rounds=16, resume=True, **changes), silent)
    (run,) = (path for path in (folder / "private").iterdir() if path.is_dir())
    state = Store(run).find(("newcomer",), 99, 0)
    assert state is not None
    assert float(state.parameters["user"].norm()) > 0


def test_a_table_that_is_no_number_any_more_stops_the_run(tmp_path: Path) -> None:
    broken = {"optimizer": "sgd", "learning_rate": 1e9}
    with pytest.raises(RunError, match="finite"):
        inline.execute(small_job(tmp_path, server=broken, rounds=8), silent)


def test_groups_do_not_collapse_unnoticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups = {"count": 2, "by": "random"}
    with caplog.at_level(logging.WARNING):
        inline.execute(
            small_job(tmp_path, "well", 1, planted=True, server=SGD, local={"groups": {**groups, "smallest": 5}}),
            silent,
        )
        assert "too few people in groups" not in caplog.text
        inline.execute(
            small_job(tmp_path, "few", 1, planted=True, server=SGD, local={"groups": {**groups, "smallest": 39}}),
            silent,
        )
    assert caplog.text.count("too few people in groups 0 (") == 1, "said once, and not again until it changes"
