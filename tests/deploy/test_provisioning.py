"""The dataset a run asks for is found, raw or converted."""

from pathlib import Path

import pytest

from tessera.common.config.settings import DataSettings
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import write_json
from tessera.deploy.provisioning.datasets import prepared_dataset


def test_questions_may_be_raw_or_converted(tmp_path: Path) -> None:
    wanted = DataSettings(folder="ours", kind="questions")
    write_json(tmp_path / "ours" / "dataset.json", {"kind": "questions"})
    for data in (tmp_path, tmp_path / "ours"):
        assert prepared_dataset(wanted, data, tmp_path / "prepared") == tmp_path / "ours"
    write_json(tmp_path / "ours" / "dataset.json", {"kind": "movielens"})
    with pytest.raises(DataError, match="ours is a converted dataset, but not of the kind questions"):
        prepared_dataset(wanted, tmp_path, tmp_path / "prepared")
