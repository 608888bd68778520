"""Lines of metrics.jsonl: read as they were written, told from other versions', and described field by field."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.common.errors import DataError
from tessera.common.metrics.names import MetricName
from tessera.common.metrics.records import (
    FILE,
    AbandonedRecord,
    BaselinesRecord,
    EvaluationRecord,
    Record,
    ResultRecord,
    RoundRecord,
    StatisticsRecord,
    amend_result,
    evaluations,
    read_line,
    read_records,
    read_result,
    read_rounds,
    write_line,
)
from tests.support.splits import tries

NDCG = MetricName("validation", "all", "ndcg", 50)
LINES: list[Record] = [
    StatisticsRecord(users=3, events=9, withheld=0, nodes=2, seconds=0.1),
    BaselinesRecord(nodes=2, scores={NDCG.of("random"): 1.5}),
    RoundRecord(round=1, loss=0.7, users=3, nodes=2, seconds=0.2, dropped={"late": 1}, troubles=("node 1 was late",)),
    AbandonedRecord(round=2, reason="nobody is there"),
    EvaluationRecord(round=2, nodes=1, seconds=0.3, scores={NDCG: 12.5}),
    ResultRecord(name="r", seed=0, rounds=2, selected_round=2, scores={NDCG: 12.5}, baselines={}, seconds=0.5),
]
numbers = st.floats(0, 1e9)


def written(folder: Path, text: str) -> Path:
    (folder / FILE).write_text(text)
    return folder


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = written(tmp_path, "".join(map(write_line, LINES)) + '{"kind": "rou')
    assert read_records(run) == LINES, "the line that a kill cut short is left out"
    assert read_rounds(run) == [LINES[2]]
    assert evaluations(run) == [{NDCG: 12.5}]
    assert read_result(run) == LINES[-1]


@tries(60)
@given(numbers, numbers, st.dictionaries(st.sampled_from([10, 20, 50]), numbers, min_size=1))
def test_no_digit_of_a_figure_is_lost(loss: float, seconds: float, scores: dict[int, float]) -> None:
    figures = {MetricName("test", "all", "hr", k): value for k, value in scores.items()}
    for line in (
        RoundRecord(round=1, loss=loss, users=1, nodes=1, seconds=seconds),
        EvaluationRecord(round=1, nodes=1, seconds=seconds, scores=figures),
    ):
        assert read_line(write_line(line), "here") == line


def test_other_programs_find_the_kind_the_version_and_no_empty_field() -> None:
    line = json.loads(write_line(LINES[2]))
    assert (line["kind"], line["version"]) == ("round", 3)
    assert "dropped" not in json.loads(write_line(LINES[0]))
    assert json.loads(write_line(LINES[4]))["scores"] == {"validation/all/ndcg@50": 12.5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 4}, "version: Input should be 1, 2 or 3"),
        ({"kind": "rund"}, "'kind'"),
        ({"loss": "much"}, "loss: "),
        ({"kind": "evaluation", "scores": {"ndcg": 1.0}}, "'ndcg' is no metric's name"),
        ({"people": 3}, "people: "),
    ],
)
def test_a_line_that_cannot_be_read_is_named(change: dict, said: str, tmp_path: Path) -> None:
    damaged = json.dumps(json.loads(write_line(LINES[2])) | change) + "\n"
    run = written(tmp_path, write_line(LINES[0]) + damaged)
    with pytest.raises(
        DataError, match=f"metrics.jsonl, line 2, is damaged or of another version .*{said}.*remove the line"
    ):
        read_records(run)


def test_a_run_that_did_not_end_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no result: the run did not come to its end"):
        read_result(written(tmp_path, write_line(LINES[0])))


def test_a_result_is_amended_in_its_place(tmp_path: Path) -> None:
    run = written(tmp_path, "".join(map(write_line, LINES)))
    amended = amend_result(run, bytes_up_alone=7.5)
    assert read_records(run) == [*LINES[:-1], amended]
    assert read_result(run) == amended
    assert amended.model_copy(update={"bytes_up_alone": None}) == LINES[-1]


@pytest.mark.parametrize("record", LINES, ids=lambda line: line.kind)
def test_every_field_says_what_it_is(record: Record) -> None:
    """The page of the docs about metrics is made of these."""
    assert type(record).__doc__
    assert [name for name, field in type(record).model_fields.items() if name != "kind" and not field.description] == []
