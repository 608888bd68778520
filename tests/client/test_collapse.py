"""What devices sum about each view equals what a server would measure that saw everybody's history."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.client import cohort
from tessera.client.contrast.collapse import collapse_sums
from tessera.client.histories import histories
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import EvaluationSettings, LocalSettings, Settings
from tessera.common.data.interactions import Split
from tessera.common.errors import ConfigError
from tessera.common.metrics.names import written
from tessera.common.metrics.ranking import MetricSums, percentages
from tessera.common.protocol.figures import figure_names
from tessera.deploy.executors import inline
from tests.support.catalogues import small_job, small_settings, small_split
from tests.support.metrics import read_metrics

N_USERS, N_ITEMS, DIM = 12, 30, 8
VIEWS = ("image", "text")
LOCAL = LocalSettings.model_validate({"backbone": "cosine"})
CPU = torch.device("cpu")


def sums_of(
    split: Split, views: torch.Tensor, private: dict[str, torch.Tensor], settings: EvaluationSettings
) -> MetricSums:
    return collapse_sums(
        lambda people: cohort.compare(private, {"views": views}, people, LOCAL), split, settings, VIEWS, CPU
    )


@pytest.mark.parametrize("shown", ["train", "train+validation"])
def test_sums_over_devices_are_the_papers_figures_over_everybody(shown: str) -> None:
    """Eq. 4-5 and the f2f, t2f, v2f of Fig. 1a, with loops over people and items."""
    settings = EvaluationSettings(history_at_test=shown, ks=(5,))
    draws = torch.Generator().manual_seed(0)
    views = torch.nn.functional.normalize(torch.randn(2, N_ITEMS, DIM, generator=draws), dim=2)
    split = small_split(N_USERS, N_ITEMS)
    private = cohort.start_state(split.users, LOCAL, views, seed=0).parameters
    private["user"].normal_(std=0.2, generator=draws)
    parts = [
        sums_of(split.take(rows), views, {name: one[rows] for name, one in private.items()}, settings)
        for rows in (np.array([0, 1, 2]), np.array([3]), np.arange(4, N_USERS))
    ]
    found = written(percentages(sum(parts, MetricSums({"test/all/users": 12.0, "validation/all/users": 12.0}))))

    fused = views.mean(0)  # routers at their start
    near, far, spread, hits = ({name: [] for name in ("all", *VIEWS)} for _ in range(4))
    for u in range(N_USERS):
        train = split.train_items[split.offsets[u] : split.offsets[u + 1]].tolist()
        validation, target = int(split.validation.first()[u]), int(split.test.first()[u])
        history = [*train, validation] if shown != "train" else train
        candidates = [item for item in range(N_ITEMS) if item not in (*train, validation)]
        places = {"all": (fused[history].mean(0) + private["user"][u], fused)}
        places |= {name: (views[m][history].mean(0), views[m]) for m, name in enumerate(VIEWS)}
        for name, (z, items) in places.items():
            unit, rows = z / z.norm(), items / items.norm(dim=1, keepdim=True)
            squared = [float((unit - row).square().sum()) for row in rows]
            near[name].append(squared[target])
            far[name].append(np.mean([squared[item] for item in candidates if item != target]))
            spread[name].append(np.mean([math.exp(-2 * one) for one in squared]))
            order = {item: float(unit @ (fused[item] / fused[item].norm())) for item in candidates}
            hits[name].append(sum(value > order[target] for value in order.values()) < 5)
    for name in ("all", *VIEWS):
        group = name if name == "all" else f"by-{name}"
        assert found[f"test/{group}/alignment"] == pytest.approx(np.mean(near[name]), rel=1e-5)
        assert found[f"test/{group}/distance"] == pytest.approx(np.mean(far[name]), rel=1e-5)
        assert found[f"test/{group}/uniformity"] == pytest.approx(math.log(np.mean(spread[name])), rel=1e-5)
        assert found[f"test/{group}/separability"] == pytest.approx(np.mean(far[name]) / np.mean(near[name]), rel=1e-5)
        if name != "all":
            assert found[f"test/{group}/hr@5"] == pytest.approx(100 * np.mean(hits[name]))


def run(tmp_path: Path, name: str, nodes: int, **changes: object) -> dict[str, float]:
    local = {"backbone": "cosine", "loss": {"name": "wpcl", "relation": 0.1}, "history_mask": 0.0}
    views = {"dim": 8, "operators": [], "item_ids": False}
    evaluation = {"every": 2, "ks": [5], "collapse": True, "sampled_candidates": 10}
    job = small_job(tmp_path, name, nodes, local=local, views=views, evaluation=evaluation, **changes)
    inline.execute(job, lambda line: None)
    return {key: value for key, value in read_metrics(tmp_path / name)[-1]["scores"].items()}


def test_a_run_gives_the_same_figures_however_people_are_dealt_to_devices_and_under_masks(tmp_path: Path) -> None:
    alone, dealt = run(tmp_path, "alone", 1), run(tmp_path, "dealt", 4)
    masked = run(tmp_path, "masked", 4, privacy={"secure": True})
    assert {"test/by-text/ndcg@5", "test/by-image/separability", "validation/all/uniformity"} <= alone.keys()
    assert alone["test/sampled/hr@5"] > alone["test/all/hr@5"]  # among ten others instead of all
    assert dealt == pytest.approx(alone, rel=1e-3)
    assert masked == pytest.approx(dealt, rel=1e-3)


def test_masks_have_a_place_for_all_that_is_said_and_only_where_it_is_asked_for() -> None:
    evaluation = {"ks": [5], "collapse": True}
    asked = small_settings(local={"backbone": "cosine"}, evaluation=evaluation)
    quiet = small_settings(local={"backbone": "cosine"}, evaluation={"ks": [5]})

    def names(settings: Settings) -> set[str]:
        return set(figure_names("evaluate", DeviceSettings.of(settings), (), VIEWS))

    split = small_split(N_USERS, N_ITEMS)
    views = torch.nn.functional.normalize(torch.randn(2, N_ITEMS, DIM), dim=2)
    private = cohort.start_state(split.users, LOCAL, views, seed=0).parameters
    said = set(sums_of(split, views, private, asked.evaluation).values)
    assert said <= names(asked)
    assert not any("by-" in name or "alignment" in name for name in names(quiet))
    assert len(histories(split)) == N_USERS


def test_a_backbone_that_fuses_cannot_be_asked_view_by_view() -> None:
    with pytest.raises(ConfigError, match=r"collapse needs a backbone that compares by each view alone: cosine"):
        small_settings(evaluation={"collapse": True})
