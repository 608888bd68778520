"""What is said of runs: files are read again only as far as they changed, and say the same as if they were read anew."""

import random
from pathlib import Path

import pytest

from tessera.common.errors import DataError
from tessera.common.metrics.records import FILE, AbandonedRecord, read_records, write_line
from tessera.server.live.kept import MOST, Kept
from tessera.server.live.run_info import runs_in


def lines(first: int, last: int, reason: str = "") -> str:
    return "".join(write_line(AbandonedRecord(round=n, reason=reason or str(n))) for n in range(first, last + 1))


def test_metrics_that_grow_are_cut_and_written_anew_are_read_as_they_are(tmp_path: Path) -> None:
    kept, file, draws = Kept(), tmp_path / FILE, random.Random(0)
    assert kept.records(tmp_path) == ()
    for _ in range(300):
        content = file.read_text() if file.exists() else ""
        grown = content + lines(1, draws.randint(0, 3), str(draws.random()))
        cut = "".join(content.splitlines(keepends=True)[: draws.randint(0, 5)]) + lines(7, 9, str(draws.random()))
        half = content[: draws.randint(0, len(content))]
        file.write_text(draws.choice([grown, grown, cut, half, content]))
        assert list(kept.records(tmp_path)) == read_records(tmp_path)
        if not file.read_text().endswith("\n"):
            file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")))


def test_a_damaged_line_is_named_wherever_reading_goes_on(tmp_path: Path) -> None:
    kept = Kept()
    (tmp_path / FILE).write_text(lines(1, 4))
    assert len(kept.records(tmp_path)) == 4
    with (tmp_path / FILE).open("a") as file:
        file.write(lines(5, 5) + "{}\n")
    for _ in range(2):
        with pytest.raises(DataError, match="line 6, is damaged"):
            kept.records(tmp_path)


def test_no_more_runs_are_remembered_than_a_page_shows(tmp_path: Path) -> None:
    kept = Kept()
    for number in range(MOST + 20):
        run = tmp_path / str(number)
        run.mkdir()
        (run / FILE).write_text(lines(number, number))
        kept.records(run)
    assert len(kept._records) == MOST
    assert kept.records(tmp_path / "0") == (AbandonedRecord(round=0, reason="0"),)


def test_runs_of_grids_are_found_and_what_is_in_a_run_is_not_looked_through(tmp_path: Path) -> None:
    for name in ("demo", "grid/fcf/seed0", "grid/set/fcf/choice0", "demo/devices/inner"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "status.json").write_text("{}")
    assert set(runs_in(tmp_path)) == {"demo", "grid/fcf/seed0", "grid/set/fcf/choice0"}
    assert runs_in(tmp_path / "nowhere") == {}
