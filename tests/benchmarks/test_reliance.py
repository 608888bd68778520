"""What devices learn about their people, against the truth that a generated shop has."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.benchmarks.harness.reliance import correlations, gains, reliances
from tessera.client.histories import histories
from tessera.client.recommend import Personal
from tessera.client.router import pool, route
from tessera.common.config.loading import load_settings
from tessera.common.datasets import convert_shop
from tessera.common.protocol.messages import HISTORY, VIEWS
from tessera.deploy.executors import inline
from tessera.deploy.executors.run import make_job, run_job
from tessera.deploy.job import Job
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics

DEMO = Path(__file__).parents[2] / "benchmarks" / "demo.yaml"
WITHOUT = {"image": "views.modalities=[text]", "text": "views.modalities=[image]", "crowd": "views.item_ids=false"}
QUICK = ["rounds=30", "views.dim=64", "views.id_dim=64", "evaluation.baselines=false", "evaluation.every=30"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reliance") / "shop"
    convert_shop(folder, n_items=600, n_users=400, seed=0)
    return folder


def trained(shop: Path, name: str, *changes: str) -> Job:
    settings = load_settings(DEMO, "inline", changes)
    job = make_job(settings, shop, shop.parent / name, resume=False, overwrite=False)
    run_job(job, "inline", lambda line: None)
    return job


@pytest.fixture(scope="module")
def full(shop: Path) -> Job:
    return trained(shop, "full", *QUICK)


def test_the_demo_recovers_the_true_reliance(tmp_path: Path) -> None:
    convert_shop(tmp_path / "shop")
    people = reliances(tmp_path / "shop", trained(tmp_path / "shop", "demo", "evaluation.every=40").devices)
    found = correlations(people)
    assert found["mean"] > 0.8
    assert min(found.values()) > 0.75
    assert correlations(people, "weight")["mean"] > 0.75, "most of it stands in the routers' weights alone"


@pytest.mark.parametrize("name", list(WITHOUT))
def test_removing_a_modality_hurts_those_who_rely_on_it_most(shop: Path, full: Job, name: str) -> None:
    quick = [
        change for change in QUICK if name != "crowd" or "id_dim" not in change
    ]  # there are no item embeddings then
    without = trained(shop, f"without-{name}", *quick, WITHOUT[name])
    people = reliances(shop, full.devices).join(gains(full.devices, 50), on="user")
    people = people.join(gains(without.devices, 50), on="user", suffix="_without").sort(f"reliance_{name}")
    lost = (people["gain"] - people["gain_without"]).to_numpy()
    quarter = len(people) // 4
    most, least = lost[-quarter:], lost[:quarter]
    error = (most.var() / quarter + least.var() / quarter) ** 0.5
    assert most.mean() - least.mean() > 3 * error
    assert most.mean() > 5


def test_reliance_is_each_views_share_of_the_spread_of_a_persons_scores(tmp_path: Path) -> None:
    job = small_job(tmp_path, nodes=2)
    inline.execute(job, lambda line: None)
    for folder in job.devices:
        personal = Personal.open(folder)
        found = personal.reliance()
        ((split, private),) = personal.people()
        views, table = personal.sent[VIEWS], personal.sent[HISTORY]
        weights = route(private, pool(histories(split), views))
        for row, user in enumerate(split.users):
            items = split.train_items[split.offsets[row] : split.offsets[row + 1]]
            query = table[items].sum(0) / len(items) ** 0.5 + private["user"][row]
            spreads = torch.stack([(weights[row, view] * views[view] @ query).std() for view in range(len(views))])
            np.testing.assert_allclose(found[user], spreads / spreads.sum(), rtol=1e-4)


def test_the_mean_gain_is_what_the_run_reports(tmp_path: Path) -> None:
    job = small_job(tmp_path, nodes=2)
    inline.execute(job, lambda line: None)
    scores = read_metrics(job.run_dir)[-1]["scores"]
    reported = (scores["validation/all/ndcg@20"] + scores["test/all/ndcg@20"]) / 2
    assert gains(job.devices, 20)["gain"].mean() == pytest.approx(reported, rel=1e-5)


def test_what_is_learnt_of_people_does_not_depend_on_their_node(tmp_path: Path) -> None:
    found = []
    for nodes in (1, 3):
        job = small_job(tmp_path, f"on-{nodes}", nodes)
        inline.execute(job, lambda line: None)
        found.append(
            {user: shares for folder in job.devices for user, shares in Personal.open(folder).reliance().items()}
        )
    assert found[0].keys() == found[1].keys()
    for user, shares in found[0].items():
        np.testing.assert_allclose(found[1][user], shares, rtol=1e-3)
