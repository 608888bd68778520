"""A federation of different towers that was interrupted, or killed, goes on as if it had not been."""

from pathlib import Path
from typing import Any

import pytest

from tessera.deploy.executors import inline
from tests.deploy.test_executors import assert_bitwise, kill_after, silent
from tests.support.qa_devices import qa_dataset, qa_job


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qa_dataset(tmp_path_factory.mktemp("qa") / "data")


RESUMED: dict[str, Any] = {"rounds": 5, "evaluation": {"every": 5}, "mosaic": {"stream": "dynamic"}}


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = qa_job(dataset, tmp_path_factory.mktemp("undisturbed") / "run", **RESUMED)
    inline.execute(job, silent)
    return job.run_dir


@pytest.mark.parametrize("method", ["perada", "takfl", "fedmkt"])
def test_what_the_server_learnt_in_public_is_in_a_checkpoint(tmp_path: Path, dataset: Path, method: str) -> None:
    def interrupt(line) -> None:  # type: ignore[no-untyped-def]
        if line.kind == "round" and line.round == 2:
            raise KeyboardInterrupt

    short = {"rounds": 3, "evaluation": {"every": 3}, "mosaic": {"method": {"name": method, "public_questions": 50}}}
    inline.execute(qa_job(dataset, tmp_path / "whole", **short), silent)
    with pytest.raises(KeyboardInterrupt):
        inline.execute(qa_job(dataset, tmp_path / "run", **short), interrupt)
    inline.execute(qa_job(dataset, tmp_path / "run", resume=True, **short), silent)
    assert_bitwise(tmp_path / "whole", tmp_path / "run")


def test_an_interrupted_run_resumes_bit_for_bit(tmp_path: Path, dataset: Path, undisturbed: Path) -> None:
    def interrupt(line) -> None:  # type: ignore[no-untyped-def]
        if line.kind == "round" and line.round == 2:  # reported, and not yet in a checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inline.execute(qa_job(dataset, tmp_path / "run", **RESUMED), interrupt)
    inline.execute(qa_job(dataset, tmp_path / "run", resume=True, **RESUMED), silent)
    assert_bitwise(undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, dataset: Path, undisturbed: Path) -> None:
    done = kill_after(qa_job(dataset, tmp_path / "run", **RESUMED), n_rounds=3)
    assert 3 <= done < 5
    inline.execute(qa_job(dataset, tmp_path / "run", resume=True, **RESUMED), silent)
    assert_bitwise(undisturbed, tmp_path / "run")
