"""Lists by the shared model, one's own group's map and another's: from the files of a run, whose figures add up."""

from pathlib import Path

import pytest

from tessera.benchmarks import group_lists
from tessera.common.errors import DataError
from tessera.deploy.executors import inline
from tests.deploy.test_executors import silent
from tests.support.catalogues import small_job


def test_lists_differ_by_the_maps_that_were_learnt_and_by_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = {"count": 2, "by": "random", "smallest": 1, "rank": 4}
    for name, rate in (("still", 1e-9), ("moved", 30.0)):
        server = {"optimizer": "sgd", "learning_rate": 0.1, "head_learning_rate": rate}
        inline.execute(small_job(tmp_path, name, nodes=1, local={"groups": groups}, server=server), silent)
    still, moved = (group_lists.main([str(tmp_path / name), "--k", "3"]) for name in ("still", "moved"))
    assert still["same of ten"] == {"shared": 1, "another group": 1}
    assert max(moved["same of ten"].values()) < 1
    assert sum(moved["groups"]) == moved["people"]
    assert moved["numbers of maps"] == 2 * 4 * 8
    assert capsys.readouterr().out.count("another group") >= 4
    with pytest.raises(DataError, match="--people 999"):
        group_lists.main([str(tmp_path / "moved"), "--people", "999"])
    inline.execute(small_job(tmp_path, "none", nodes=1), silent)
    with pytest.raises(DataError, match="has no groups"):
        group_lists.main([str(tmp_path / "none")])
