"""What is logged goes to the terminal as much as was asked for, and into a run's folder from INFO on."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.common.utils.logs import ROOT, RUN_LOG, is_quiet, log_to_terminal, run_log

log = logging.getLogger(f"{ROOT}.test")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    logger = logging.getLogger(ROOT)
    before = list(logger.handlers), logger.level
    yield
    logger.handlers, level = before
    logger.setLevel(level)


@pytest.mark.parametrize(("level", "quiet"), [(logging.ERROR, True), (logging.WARNING, False)])
def test_the_terminal_gets_what_was_asked_for(level: int, quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_terminal(level)
    assert is_quiet() is quiet
    log.info("detail")
    log.warning("look out")
    log.error("too late")
    assert capsys.readouterr().err == "warning: look out\n" * (not quiet) + "error: too late\n"


def test_a_run_keeps_what_happened_and_adds_to_it_when_it_goes_on(tmp_path: Path) -> None:
    for part in ("first", "resumed"):
        with run_log(tmp_path):
            log.debug("nobody wants to know")
            log.info(part)
    log.info("after the run")
    lines = (tmp_path / RUN_LOG).read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["first", "resumed"]
    assert all("INFO" in line and "tessera.test" in line for line in lines)


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    with run_log(tmp_path / "not there"):
        log.warning("goes on")
    assert not (tmp_path / "not there").exists()
