"""What a run learnt of the contents as a modality of its dataset, from which another run starts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.benchmarks.learnt_features import write
from tessera.client.recommend import Personal
from tessera.common.data.catalogue import load_catalogue
from tessera.common.errors import DataError
from tessera.common.protocol.messages import VIEWS
from tessera.deploy.executors import inline
from tests.support.catalogues import small_job


def test_the_modality_is_what_devices_saw_and_another_run_starts_from_it(tmp_path: Path) -> None:
    views = {"dim": 8, "operators": [], "item_ids": False, "encoder": "bottleneck"}
    job = small_job(tmp_path, "learnt", 2, views=views, local={"backbone": "cosine"})
    inline.execute(job, lambda line: None)
    dataset = tmp_path / "small"
    (dataset / "dataset.json").write_text(
        json.dumps({"name": "small", "kind": "table", "source": "", "filters": {}, "rules": []})
    )
    write(job.run_dir, dataset, tmp_path / "more", "adapted")
    found = load_catalogue(tmp_path / "more").features
    assert found.keys() == {"image", "text", "adapted"}
    shown = torch.nn.functional.normalize(Personal.open(job.devices[0]).sent[VIEWS].float(), dim=-1).sum(0)
    cosines = (torch.nn.functional.normalize(shown, dim=-1) * torch.from_numpy(found["adapted"].values)).sum(1)
    np.testing.assert_allclose(cosines.numpy(), 1, atol=1e-4)
    with pytest.raises(DataError, match="has a modality 'image' already"):
        write(job.run_dir, dataset, tmp_path / "again", "image")
