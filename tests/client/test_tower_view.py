"""A device's own view: what its people see of it, what their gradients do to its tower, and when nothing happens."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from tessera.client import cohort, tower_view
from tessera.client.histories import histories
from tessera.client.private_state import Store
from tessera.client.recommendation import RecommendationClient
from tessera.client.tower_view import TowerView, sized, typical_size
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import TOWER_DIM
from tessera.common.data.catalogue import FEATURES, load_catalogue
from tessera.common.errors import ConfigError, DataError
from tessera.common.protocol.adapters import ADAPTERS
from tessera.common.protocol.messages import HISTORY, VIEWS, Task
from tessera.common.protocol.signature_mask import kept_coordinates
from tessera.common.protocol.tensors import content_hash
from tessera.common.protocol.updates import Update
from tessera.common.towers.aligned_init import last_layer
from tessera.common.towers.io import load_reader
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import read_tensors, write_tensors
from tests.support.devices import people_job, people_settings, people_with_towers

Sent = dict[str, Tensor]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people_with_towers(tmp_path_factory.mktemp("people") / "data")


def device(
    dataset: Path, tmp_path: Path, kind: str = "train", round: int = 1, **changes: object
) -> tuple[RecommendationClient, Task]:
    """The first of two devices, and a task."""
    job = people_job(dataset, tmp_path / "run", 2, **changes)
    node = RecommendationClient(job.devices[0], simulated=True)
    return node, Task(kind, "run", round, (), ("one", "two"), node.catalogue().sha256, DeviceSettings.of(job.settings))  # type: ignore[arg-type]


def broadcast(dataset: Path, seed: int = 0) -> Sent:
    """Two views and a history view."""
    generator = torch.Generator().manual_seed(seed)
    n_items = len(load_catalogue(dataset, modalities=False))
    shapes = {VIEWS: (2, n_items, TOWER_DIM), HISTORY: (n_items, TOWER_DIM)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def trained(node: RecommendationClient, task: Task, sent: Sent) -> Update:
    return node.perform(replace(task, tensors=content_hash(sent)), sent, {})


def kept(node: RecommendationClient, task: Task) -> dict[str, Tensor]:
    state = Store(node.private(task.run) / "tower").load(0, before=10**6)
    assert state is not None
    return state.parameters


def test_the_own_view_stands_last_centred_and_as_large_as_the_servers(dataset: Path, tmp_path: Path) -> None:
    node, task = device(dataset, tmp_path)
    sent = broadcast(dataset)
    tower = TowerView.of(node, task)
    views = tower.beside(sent)[VIEWS]
    assert torch.equal(views[:-1], sent[VIEWS])
    torch.testing.assert_close(views[-1].mean(0), torch.zeros(TOWER_DIM), rtol=0, atol=1e-5)
    torch.testing.assert_close(typical_size(views[-1]), typical_size(sent[VIEWS]))
    larger = tower.beside({**sent, VIEWS: 10 * sent[VIEWS]})[VIEWS]
    torch.testing.assert_close(larger, 10 * views)


def test_one_round_does_to_the_tower_what_autograd_through_everything_does(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive twin: views, reader and loss in one graph, all people at once; and only the server's part leaves."""
    node, task = device(dataset, tmp_path, local={"batch_users": 3})
    sent, settings = broadcast(dataset), task.settings
    monkeypatch.setattr(tower_view, "SHOWN_AT_ONCE", 7)
    found: dict[str, Tensor] = {}

    def recorded(tower: TowerView) -> dict[str, Tensor]:
        parameters = tower.context.adapted.model.named_parameters()
        found.update({name: one.grad.clone() for name, one in parameters if one.grad is not None})
        tower.context.adapted.model.zero_grad()
        return {}

    monkeypatch.setattr(TowerView, "_step", recorded)
    update = trained(node, task, sent)

    tower = TowerView.of(node, task)
    tower.beside(sent)
    model, prompts = tower.context.adapted.model, tower.context.prompts
    answers = prompts.answers(model.get_base_model(), torch.arange(len(prompts.pieces)))
    server = sent[VIEWS].clone().requires_grad_()
    units = normalize(answers, dim=1)
    units = units - units.mean(0)
    scale = (typical_size(sent[VIEWS]) / typical_size(units)).detach()
    views = torch.cat([server, (units * scale)[None]])
    known = histories(node.split(settings))
    start = cohort.start_state(node.split(settings).users, settings.local, views.detach(), settings.seed)
    step = cohort.Step({**sent, VIEWS: views}, known, settings.local, task.round)
    losses = step._losses(
        start.parameters, {**sent, VIEWS: views}, counter_rng.key("epoch", settings.seed, task.round, 0)
    )
    losses.sum().backward()

    torch.testing.assert_close(update.gradients[VIEWS], server.grad, rtol=1e-4, atol=1e-6)
    assert len(found) > 20
    for name, one in model.named_parameters():
        if one.requires_grad and one.grad is not None:
            torch.testing.assert_close(found[name], one.grad / len(known), rtol=1e-3, atol=2e-6)
    model.zero_grad()


def test_a_round_lowers_the_loss_of_a_step_towards_the_people(dataset: Path, tmp_path: Path) -> None:
    """With the server's views and the people's own parameters held, ten rounds fit the adapter alone."""
    still, constant = {"learning_rate": 1e-9, "history_mask": 0.0}, {"schedule": "constant"}
    node, task = device(dataset, tmp_path, local=still, mosaic=constant)
    sent = broadcast(dataset)
    losses = []
    for round in range(1, 11):
        update = trained(node, replace(task, round=round), sent)
        losses.append(update.sums.mean("loss", "users"))
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_adam_goes_on_where_the_last_round_left_it(dataset: Path, tmp_path: Path) -> None:
    node, task = device(dataset, tmp_path)
    for round in (1, 2, 3):
        trained(node, replace(task, round=round), broadcast(dataset))
    steps = [value for name, value in kept(node, task).items() if name.startswith("steps.")]
    assert len(steps) > 20
    assert all(value.flatten().tolist() == [3.0] for value in steps)


def test_where_nobody_takes_part_nothing_changes_and_nothing_leaves(dataset: Path, tmp_path: Path) -> None:
    node, task = device(dataset, tmp_path, fraction=1e-9)
    update = trained(node, task, broadcast(dataset))
    assert not update[ADAPTERS].modules
    assert not update.gradients
    assert set(update[ADAPTERS].towers) == {node.client("run")}, "it still says who it is"
    assert not (node.private("run") / "tower").exists()


def test_clipping_bounds_a_persons_part_of_the_own_view_too(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, task = device(dataset, tmp_path, privacy={"clip": 1e-3})
    learnt: list[Update] = []
    learn = TowerView.learn
    monkeypatch.setattr(
        TowerView, "learn", lambda tower, update, seen: learnt.append(update) or learn(tower, update, seen)
    )
    trained(node, task, broadcast(dataset))
    (everything,) = learnt
    assert everything.gradients[VIEWS][-1].any()
    norm = torch.cat([gradient.flatten() for gradient in everything.gradients.values()]).norm()
    assert 0 < norm <= 1e-3 * everything.weight


def test_new_users_see_the_tower_and_do_not_move_it(dataset: Path, tmp_path: Path) -> None:
    everybody, task = device(dataset, tmp_path / "all")
    some, other = device(dataset, tmp_path / "some", data={"folder": "people", "cold_users": 0.5})
    split = some.split(other.settings)
    assert len(split.new_users().users) > 0
    sent = broadcast(dataset)
    update = trained(some, other, sent)
    assert update.weight == len(split.training_users().users)
    sums = some.perform(replace(other, kind="evaluate", tensors=content_hash(sent)), sent, {}).sums
    assert sums["test/new-users/users"] > 0
    assert not torch.equal(
        update[ADAPTERS].modules[some.client("run")].signature,
        trained(everybody, task, sent)[ADAPTERS].modules[everybody.client("run")].signature,
    )


def test_an_item_without_a_picture_is_seen_by_its_text(dataset: Path, tmp_path: Path) -> None:
    node, task = device(dataset, tmp_path)
    path = node.folder / FEATURES / "image.safetensors"
    tensors, about = read_tensors(path)
    views = []
    for filler in (0.0, 3.0):
        tensors["present"][5], tensors["features"][5] = False, filler
        write_tensors(path, tensors, about)
        tower_view._equip.cache_clear()
        views.append(
            TowerView.of(node, task).context.prompts.all_answers(
                TowerView.of(node, task).context.adapted.model.get_base_model()
            )
        )
    torch.testing.assert_close(*views)
    assert views[0].isfinite().all()


def test_the_signature_is_the_gradient_at_the_head_of_the_tower_that_signs(dataset: Path, tmp_path: Path) -> None:
    node, task = device(dataset, tmp_path)
    sent = broadcast(dataset)
    signature = trained(node, task, sent)[ADAPTERS].modules[node.client("run")].signature

    tower = TowerView.of(node, replace(task, round=1))
    seen = tower.beside(sent)
    known = histories(node.split(task.settings))
    start = cohort.start_state(node.split(task.settings).users, task.settings.local, seen[VIEWS], task.settings.seed)
    _, update = cohort.train(start, seen, known, task.settings.local, task.settings.seed, task.round)
    signer = load_reader(node.folder / "tower" / "signer.safetensors")
    last_layer(signer).requires_grad_()
    features = load_catalogue(node.folder).features
    item_embeddings = signer.embed_items(
        *(torch.from_numpy(features[name].standardised()) for name in ("image", "text"))
    )
    view = sized(
        replace(tower.context.prompts, item_embeddings=item_embeddings).answers(
            signer, torch.arange(len(seen[VIEWS][0]))
        ),
        typical_size(sent[VIEWS]),
    )
    (view * update.gradients[VIEWS][-1] / update.weight).sum().backward()
    wanted = torch.cat([one.grad.flatten() for one in last_layer(signer).parameters()])
    mask = kept_coordinates(len(wanted), task.settings.seed, task.settings.mosaic.signature.kept)
    assert cosine_similarity(signature, wanted[mask], dim=0) > 0.999


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": {"dim": 32}}, "set views.dim to 64"),
        ({"strategy": "fedmosaic"}, "set strategy to combined"),
        ({"mosaic": {"method": "ditto"}}, "combined adapts towers by sft, pq, fedmosaic"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        people_settings(**changes)


def test_a_device_without_features_or_tower_says_what_it_lacks(dataset: Path, tmp_path: Path) -> None:
    node, task = device(dataset, tmp_path)
    (node.folder / "tower" / "reader.safetensors").unlink()
    tower_view._equip.cache_clear()
    with pytest.raises(DataError, match=r"reader.safetensors does not exist"):
        node.perform(replace(task, kind="item_statistics"), None, {})
    (node.folder / FEATURES / "text.safetensors").unlink()
    with pytest.raises(DataError, match="no text features"):
        node.perform(replace(task, kind="item_statistics"), None, {})
