"""Encoders behind the views learn from devices' sums as if they were on each device, and start as what they adapt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.client import cohort
from tessera.client.backbones import LazyScores, make_backbone
from tessera.client.histories import histories
from tessera.client.losses import softmax
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.hidden import HiddenStates
from tessera.common.errors import ConfigError, DataError
from tessera.common.protocol.updates import Update
from tessera.common.registry.content_encoders import CONTENT_ENCODERS
from tessera.common.towers.pretrained import load_text_tower
from tessera.server.strategies.fedvlr import FedVLR
from tests.support.catalogues import small_catalogue, small_split
from tests.support.small_towers import tiny_text_tower

N_ITEMS, WIDTH = 30, 16
KINDS = {
    "frozen": {},
    "bottleneck": {"hidden": 5},
    "iisan": {"hidden": 4},
    "lora": {"rank": 2, "tokens": 12},
    "ia3": {"tokens": 12},
}
learning = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "frozen"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Catalogue]:
    """A dataset's folder with hidden states of its texts, the tower that made them, and its items."""
    folder = tmp_path_factory.mktemp("dataset")
    tower = tiny_text_tower(folder / "tower", width=WIDTH)
    catalogue = small_catalogue(N_ITEMS)
    loaded = load_text_tower(str(tower))
    with torch.no_grad():
        tokens = loaded.inputs([f"{title} {row}" for row, title in enumerate(catalogue.titles)], 12)
        states, vectors = loaded.states(tokens), loaded(tokens)
    present = torch.ones(N_ITEMS, dtype=torch.bool)
    HiddenStates(states, present, loaded.name).save(folder, "text")
    features = {**catalogue.features, "text": Features(vectors.numpy(), present.numpy(), loaded.name)}
    titles = tuple(f"{title} {row}" for row, title in enumerate(catalogue.titles))
    return folder, tower, Catalogue(catalogue.items, titles, ("",) * N_ITEMS, catalogue.images, features)


def start(kind: str, dataset: tuple[Path, Path, Catalogue], **encoder: object) -> FedVLR:
    folder, tower, catalogue = dataset
    own = {"tower": str(tower)} if kind in ("lora", "ia3") else {}
    content = {
        "name": "encoders",
        "data": {"folder": "none"},
        "views": {
            "dim": 8,
            "operators": [],
            "item_ids": False,
            "encoder": {"name": kind, **KINDS[kind], **own, **encoder},
        },
        "local": {"backbone": "cosine", "loss": "softmax", "history_mask": 0.0},
        "server": {"optimizer": "sgd", "learning_rate": 0.5},
    }
    strategy = FedVLR(Settings.model_validate(content), catalogue, dataset=folder)
    strategy.generator.double()
    return strategy


def trained(strategy: FedVLR, round: int = 1) -> Update:
    """One round of everybody's training on what is broadcast."""
    local, split, sent = strategy.settings.local, small_split(9, N_ITEMS), strategy.build_views()
    people = histories(split).to(torch.device("cpu"), torch.float64)
    state = cohort.start_state(split.users, local, sent["views"], seed=0)
    return cohort.train(state, sent, people, local, 0, round)[1]


def test_every_encoder_is_tried() -> None:
    assert KINDS.keys() == set(CONTENT_ENCODERS)


@learning
def test_it_starts_as_what_it_adapts_and_all_of_it_moves(kind: str, dataset: tuple[Path, Path, Catalogue]) -> None:
    strategy, frozen = start(kind, dataset), start("frozen", dataset)
    assert torch.equal(strategy.build_views()["views"], frozen.build_views()["views"])
    before = {name: value.clone() for name, value in strategy.state().items()}
    for round in (1, 2, 3):
        strategy.aggregate(trained(strategy, round))
    moved = strategy.state()
    stuck = [name for name, value in before.items() if "encoders" in name and torch.equal(moved[name], value)]
    assert not stuck
    assert any("encoders" in name for name in before)


@learning
def test_devices_sums_give_the_gradient_through_the_encoder(kind: str, dataset: tuple[Path, Path, Catalogue]) -> None:
    """As if every person had the encoder on their own device and differentiated all the way (Algorithm 1)."""
    strategy = start(kind, dataset)
    strategy.aggregate(trained(strategy))  # away from the start, where some gradients are zero
    update, local = trained(strategy, 2), strategy.settings.local
    split, generator = small_split(9, N_ITEMS), strategy.generator
    generator.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(9):
        own = split.take(np.array([row]))
        people = histories(own).to(torch.device("cpu"), torch.float64)
        sent = generator()
        private = cohort.start_state(own.users, local, sent["views"].detach(), seed=0).parameters
        given = cohort.routed(private, sent, people, local)
        total = total + softmax(LazyScores(make_backbone(local.backbone), given), people, local.loss, 0).sum()
    (total / update.weight).backward()
    wanted = {name: value.grad.clone() for name, value in generator.named_parameters() if value.grad is not None}
    strategy.build_views()
    before = {name: value.detach().clone() for name, value in generator.named_parameters()}
    strategy.aggregate(update)  # one step of plain gradient descent
    for name, value in generator.named_parameters():
        if name in wanted and "encoders" in name:
            step = (before[name] - value.detach()) / 0.5
            torch.testing.assert_close(step, wanted[name], rtol=1e-6, atol=1e-10, msg=name)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_a_drawn_share_of_the_items_is_the_full_step_in_expectation(
    kind: str, dataset: tuple[Path, Path, Catalogue]
) -> None:
    """A step's gradient is that of the drawn items, weighed up; items are drawn alike; all of them is all."""
    whole, some, all_drawn = start(kind, dataset), start(kind, dataset, share=0.3), start(kind, dataset, share=1.0)
    for strategy in (whole, some, all_drawn):
        strategy.restore({**strategy.state(), **moved(kind, dataset)})
        assert torch.equal(strategy.build_views()["views"], whole.build_views()["views"])
    encoder, pull = some.generator.encoders["text"], torch.randn(N_ITEMS, WIDTH, dtype=torch.float64)
    drawn = encoder.drawn()
    assert len(drawn) == 9
    mask = torch.zeros(N_ITEMS, 1, dtype=torch.float64)
    mask[encoder.rows[drawn]] = N_ITEMS / 9
    wanted, found = gradients(whole, mask * pull), gradients(some, pull)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-12)
    for name, value in gradients(whole, pull).items():
        assert torch.equal(gradients(all_drawn, pull)[name], value)
    times = torch.zeros(N_ITEMS)
    for _ in range(400):
        times[encoder.drawn()] += 1
        encoder.stepped()
    assert abs(times / 400 - 0.3).max() < 0.1  # more than four standard deviations
    again = start(kind, dataset, share=0.3)
    again.restore(some.state())
    assert torch.equal(again.generator.encoders["text"].drawn(), encoder.drawn())


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_blocks_below_the_first_adapted_one_run_once_for_each_text(
    kind: str, dataset: tuple[Path, Path, Catalogue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is kept of them gives the views and the gradient that all blocks would."""
    options = {"tower": str(tiny_text_tower(tmp_path / "deep", width=WIDTH, layers=4)), "layers": [2, 3]}
    pull = torch.randn(N_ITEMS, WIDTH, dtype=torch.float64)

    def made(share: float) -> tuple[list[torch.Tensor], int]:
        """Views and gradients at the start and after a step, and how often the first block's attention ran."""
        strategy = start(kind, dataset, share=share, **options)
        block, runs = strategy.generator.encoders["text"]._tower[0].model.encoder.layer[0], []
        block.attention.register_forward_hook(lambda *_: runs.append(1))
        found = [strategy.build_views()["views"], *gradients(strategy, pull).values()]
        strategy.aggregate(trained(strategy))
        return [*found, strategy.build_views()["views"], *gradients(strategy, pull).values()], len(runs)

    for share in (1.0, 0.4):
        kept, runs = made(share)
        with monkeypatch.context() as patch:
            patch.setattr("tessera.server.encoders.trunk.KEPT", 0)
            plain, plain_runs = made(share)
        assert runs == 1 < plain_runs
        for one, other in zip(kept, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    with pytest.raises(ConfigError, match=r"layers: .* in blocks \[7\]"):
        start(kind, dataset, **{**options, "layers": [7]})


def gradients(strategy: FedVLR, pull: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of what the text's encoder makes, pulled along `pull`."""
    encoder = strategy.generator.encoders["text"]
    loss = (strategy.generator.encoded("text") * pull).sum()
    names = [name for name, _ in encoder.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(encoder.parameters())), strict=True))


def moved(kind: str, dataset: tuple[Path, Path, Catalogue]) -> dict[str, torch.Tensor]:
    """What the encoder has learnt after a step."""
    strategy = start(kind, dataset)
    strategy.aggregate(trained(strategy))
    return {name: value for name, value in strategy.state().items() if name.startswith("model/")}


@learning
def test_a_state_holds_what_learns_and_nothing_of_what_is_frozen(
    kind: str, dataset: tuple[Path, Path, Catalogue]
) -> None:
    strategy = start(kind, dataset)
    strategy.aggregate(trained(strategy))
    again = start(kind, dataset)
    again.restore(strategy.state())
    torch.testing.assert_close(again.build_views()["views"], strategy.build_views()["views"], rtol=0, atol=0)
    numbers = sum(value.numel() for name, value in strategy.state().items() if "model/encoders" in name)
    assert numbers < 3000  # the tower has more


def test_it_says_what_does_not_fit(dataset: tuple[Path, Path, Catalogue], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no encoder can be loaded from"):
        start("lora", dataset, tower=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"24 numbers of each text.*16: encode the dataset with it"):
        start("lora", dataset, tower=str(tiny_text_tower(tmp_path / "wide", width=24)))
    with pytest.raises(ConfigError, match="cannot be adapted"):
        start("lora", dataset, targets=["nothing"])
    other = tiny_text_tower(tmp_path / "other", width=WIDTH)
    (other / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no text encoder can be loaded"):
        start("ia3", dataset, tower=str(other))
    strange = tiny_text_tower(tmp_path / "strange", width=WIDTH)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"vocab_size": 5}))
    with pytest.raises(DataError, match="do not belong together"):
        load_text_tower(str(strange))


def test_ia3_scales_as_many_channels_as_the_paper_counts() -> None:
    """PerPEFT, Table 8: 46,080 in CLIP ViT-B/32, for keys, values and what goes into the feed-forward layers of both towers."""
    from peft import IA3Config, inject_adapter_in_model
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        model = CLIPModel(CLIPConfig())
        config = IA3Config(target_modules=["k_proj", "v_proj", "fc1"], feedforward_modules=["fc1"])
        inject_adapter_in_model(config, model)
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == 46_080
