"""Settings that no run could mean are refused by name before anything begins; a run that learnt nothing fails and says so."""

import math
from pathlib import Path

import polars as pl
import pytest

from tessera.common.config.loading import parse_settings
from tessera.common.data.folder_kinds import INTERACTIONS
from tessera.common.errors import ConfigError, RunError
from tessera.common.utils.atomic_files import read_json
from tessera.common.utils.tables import read_table, write_table
from tessera.deploy.executors import inline
from tessera.deploy.executors.run import make_job
from tests.deploy.test_executors import silent
from tests.support.catalogues import small_dataset, small_job, small_settings


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 2**63}, "seed: "),
        ({"seed": -1}, "seed: "),
        ({"fraction": 1.5}, "fraction: "),
        ({"fraction": 0}, "fraction: "),
        ({"local": {"learning_rate": 1e30}}, "local.learning_rate: "),
        ({"local": {"learning_rate": -0.1}}, "local.learning_rate: "),
        ({"server": {"learning_rate": math.inf}}, "server.learning_rate: "),
        ({"server": {"learning_rate": 1e30}}, "server.learning_rate: "),
        ({"data": {"folder": "small", "split": "random", "split_seed": 2**63}}, "data.split_seed: "),
        ({"views": {"operators": ["sum", "sum"]}}, "views.operators: .*sum"),
        ({"views": {"modalities": ["text", "text"]}}, "views.modalities: .*text"),
        ({"evaluation": {"ks": [10, 10]}}, "evaluation.ks: .*10"),
        ({"federation": {"nodes": 2, "clients_per_round": 3}}, "clients_per_round"),
        ({"federation": {"nodes": 2, "min_nodes": 3}}, "min_nodes"),
    ],
)
def test_what_no_run_could_mean_is_refused_by_name(changes: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_settings({"name": "r", "data": {"folder": "small"}} | changes, "r.yaml")


def test_a_run_in_which_nothing_was_learnt_fails_and_says_so(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 2, fraction=1e-9, rounds=2)
    with pytest.raises(RunError, match=r"nothing was learnt in 2 rounds, as nobody took part .*fraction"):
        inline.execute(job, silent)
    status = read_json(job.run_dir / "status.json")
    assert status["state"] == "failed"
    assert "nothing was learnt" in status["reason"]


@pytest.mark.parametrize(
    ("local", "told"), [({"recency": 0.5}, "local.recency"), ({"loss": "next"}, "local.loss next")]
)
def test_the_order_of_events_is_not_gone_by_where_no_event_has_a_time(tmp_path: Path, local: dict, told: str) -> None:
    dataset = small_dataset(tmp_path / "small")
    (dataset / "dataset.json").write_text('{"timed": false}')
    with pytest.raises(ConfigError, match=f"{told} goes by the order of events"):
        small_job(tmp_path, "run", 2, local={"backbone": "history"} | local)
    assert not (tmp_path / "run").exists()


def test_a_split_of_the_datas_own_is_never_passed_over_silently(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "small")
    events = read_table(dataset / INTERACTIONS, ("user", "item", "timestamp"))
    parts = [0] * len(events)
    parts[-1], parts[-2] = 2, 1
    write_table(dataset / INTERACTIONS, events.with_columns(part=pl.Series(parts)))
    with pytest.raises(ConfigError, match=r"set data.split to given, or to leave-one-out"):
        make_job(small_settings(), dataset, tmp_path / "run", resume=False, overwrite=False)
    assert not (tmp_path / "run").exists()
    for split in ("given", "leave-one-out"):
        settings = small_settings(data={"folder": "small", "split": split})
        make_job(settings, dataset, tmp_path / split, resume=False, overwrite=False)
