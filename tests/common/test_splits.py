"""Splits by settings: by a date, at random, and with nothing held out; on every device the same."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tessera.common.config.device import DeviceSettings
from tessera.common.config.loading import parse_settings
from tessera.common.config.settings import Settings
from tessera.common.data.interactions import Interactions, Split, from_frame
from tessera.common.data.splits import make_split
from tessera.common.errors import ConfigError, RunError
from tessera.common.metrics.records import EvaluationRecord, read_records, read_result
from tessera.deploy.executors import inline
from tests.support.catalogues import small_job

N_ITEMS = 60
DAY = 24 * 3600


def settings(**data: Any) -> Settings:
    return parse_settings({"name": "s", "data": {"folder": "x", **data}}, "the test")


def events(lengths: list[int], unit: int = 1) -> Interactions:
    """User n has `lengths[n]` events, a day apart, from 2018-01-01 on."""
    rng = np.random.default_rng(3)
    rows = [
        (f"u{user}", int(item), (1_514_764_800 + day * DAY) * unit)
        for user, length in enumerate(lengths)
        for day, item in enumerate(rng.choice(N_ITEMS, length, replace=False))
    ]
    schema = {"user": pl.String, "item": pl.Int64, "timestamp": pl.Int64}
    return from_frame(pl.DataFrame(rows, schema=schema, orient="row"), N_ITEMS)


def sizes(split: Split) -> list[list[int]]:
    """Events of each user for training, validation and test."""
    return np.stack([np.diff(split.offsets), split.validation.counts, split.test.counts], axis=1).tolist()


@pytest.mark.parametrize("unit", [1, 1000, 10**6])
@pytest.mark.parametrize("when", [date(2018, 1, 6), "2018-01-06T00:00Z", "2018-01-06"])
def test_a_date_cuts_everybody_at_once_whatever_the_unit(unit: int, when: Any) -> None:
    data = settings(split="time", validation_from="2018-01-04", test_from=when).data
    split = make_split(events([8, 5, 3, 1], unit), data, 0)
    assert sizes(split) == [[3, 2, 3], [3, 2, 0], [3, 0, 0], [1, 0, 0]]
    late = make_split(events([8]), settings(split="time", validation_from="2017-01-01", test_from="2018-01-03").data, 0)
    assert sizes(late) == [[0, 0, 0]], "who has no past is nobody's to rank for"


def test_numbers_are_timestamps_as_they_are() -> None:
    data = settings(split="time", validation_from=1_514_764_800 + DAY, test_from=1_514_764_800 + 2 * DAY).data
    assert sizes(make_split(events([5, 2]), data, 0)) == [[1, 1, 3], [1, 1, 0]]


def test_a_random_split_holds_out_shares_of_everybody_and_one_at_least() -> None:
    whole = events([40, 25, 10, 3, 2, 1])
    split = make_split(whole, settings(split="random", validation_share=0.1, test_share=0.2).data, 0)
    assert sizes(split) == [[28, 4, 8], [18, 2, 5], [7, 1, 2], [1, 1, 1], [2, 0, 0], [1, 0, 0]]
    for user in range(6):
        alone = split.take(np.array([user]))
        own = np.concatenate([alone.train_items, alone.validation.items, alone.test.items])
        assert sorted(own) == sorted(whole.items[whole.offsets[user] : whole.offsets[user + 1]])
    data = DeviceSettings.of(settings(split="random", validation_share=0.1, test_share=0.2)).data
    alone = make_split(whole.take(np.array([1])), data, 7)
    np.testing.assert_array_equal(alone.test.items, split.test.take(np.array([1])).items)
    other = make_split(whole, settings(split="random", split_seed=1).data, 0)
    assert other.test.take(np.array([0])).items.tolist() != split.test.take(np.array([0])).items.tolist()[:4]


def test_everything_is_trained_on_but_the_last_events_of_a_share() -> None:
    assert sizes(make_split(events([5, 2, 1]), settings(split="everything").data, 0)) == [
        [5, 0, 0],
        [2, 0, 0],
        [1, 0, 0],
    ]
    some = make_split(events([4] * 200), settings(split="everything", validation_share=0.25).data, 0)
    assert 30 < some.validation.people < 70
    assert (len(some.test), len(some.train_items) + len(some.validation)) == (0, 800)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"split": "time", "test_from": "2018-01-01"}, "split time needs validation_from and, later, test_from"),
        ({"split": "time", "validation_from": "2018-01-02", "test_from": "2018-01-01"}, "split time needs"),
        ({"split": "time", "validation_from": 3, "test_from": "2018-01-01"}, "split time needs"),
        (
            {"split": "time", "validation_from": "01/02/2018", "test_from": 3},
            "'01/02/2018' is neither an ISO 8601 time",
        ),
        ({"split": "random", "validation_share": 0.5, "test_share": 0.5}, "leave nothing to train on"),
        ({"test_share": 0.5}, r"data.test_share has no effect: data.split leave-one-out does not use it, random would"),
        ({"cold_items": 0.1, "split": "random"}, "cold_items replaces the split"),
    ],
)
def test_splits_that_cannot_be_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**data)


def test_a_run_on_everything_keeps_its_last_round(tmp_path: Path) -> None:
    job = small_job(tmp_path, data={"folder": "small", "split": "everything"})
    inline.execute(job, lambda line: None)
    result = read_result(job.run_dir)
    assert (result.selected_round, result.scores, result.baselines) == (4, {}, {})


def test_a_run_with_several_targets_reports_what_it_is_asked_for(tmp_path: Path) -> None:
    metrics = ["hr", "ndcg", "recall", "mrr", "map"]
    data = {"folder": "small", "split": "random", "test_share": 0.3}
    job = small_job(tmp_path, data=data, evaluation={"ks": [5], "metrics": metrics})
    inline.execute(job, lambda line: None)
    evaluated = next(line for line in read_records(job.run_dir) if isinstance(line, EvaluationRecord))
    found = {name.measure for name in evaluated.scores if (name.part, name.group) == ("test", "all")}
    assert found == {"users", *(f"{metric}@5" for metric in metrics)}
    scores = {str(name): value for name, value in read_result(job.run_dir).baselines.items()}
    assert scores["random/test/all/recall@5"] < scores["random/test/all/hr@5"]


def test_a_date_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    data = {"folder": "small", "split": "time", "validation_from": "2018-01-01", "test_from": "2019-01-01"}
    job = small_job(tmp_path, data=data)
    with pytest.raises(RunError, match=r"nobody has an event for validation by data.split time"):
        inline.execute(job, lambda line: None)
