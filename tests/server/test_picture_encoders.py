"""Encoders of pictures, alone or with one of texts, learn behind the views as those of texts do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.client import cohort
from tessera.client.histories import histories
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.hidden import load_hidden
from tessera.common.datasets.encode_hidden import encode_hidden
from tessera.common.encoders.base import Encoder, encode_images, encode_texts
from tessera.common.encoders.clip import ClipEncoder
from tessera.common.encoders.huggingface import HuggingFaceEncoder
from tessera.common.errors import ConfigError, DataError
from tessera.server.encoders.bottleneck import Bottleneck
from tessera.server.encoders.pretrained import Pretrained
from tessera.server.strategies.fedvlr import FedVLR
from tests.support.catalogues import small_catalogue, small_split
from tests.support.small_towers import tiny_clip, tiny_picture_tower, tiny_text_tower

N_ITEMS, WIDTH = 30, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset's folder with a picture of each item but the last, and towers."""
    made = tmp_path_factory.mktemp("shop")
    (made / "images").mkdir()
    draws = np.random.default_rng(0)
    for row in range(N_ITEMS - 1):
        pixels = draws.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made / "images" / f"{row}.png")
    tiny_picture_tower(made / "vit", "vit", WIDTH)
    tiny_picture_tower(made / "cnn", "cnn", WIDTH)
    tiny_text_tower(made / "bert", width=WIDTH)
    return made


def catalogue(folder: Path, pictures: Encoder, texts: Encoder) -> Catalogue:
    plain = small_catalogue(N_ITEMS)
    names = tuple(f"images/{row}.png" if row < N_ITEMS - 1 else "" for row in range(N_ITEMS))
    titles = tuple(f"{title} {row}" for row, title in enumerate(plain.titles))
    paths = [folder / name if name else None for name in names]
    features = {
        "image": encode_images(pictures, plain.items, paths),
        "text": encode_texts(texts, titles, ("",) * N_ITEMS),
    }
    return Catalogue(plain.items, titles, ("",) * N_ITEMS, names, features)


def start(folder: Path, items: Catalogue, encoder: object) -> FedVLR:
    views = {"dim": 8, "operators": [], "item_ids": False, "encoder": encoder}
    content = {
        "name": "pictures",
        "data": {"folder": "none"},
        "views": views,
        "local": {"backbone": "cosine", "loss": "softmax", "history_mask": 0.0},
        "server": {"optimizer": "sgd", "learning_rate": 0.5},
    }
    strategy = FedVLR(Settings.model_validate(content), items, dataset=folder)
    strategy.generator.double()
    return strategy


def step(strategy: FedVLR, round: int) -> None:
    local, split, sent = strategy.settings.local, small_split(9, N_ITEMS), strategy.build_views()
    people = histories(split).to(torch.device("cpu"), torch.float64)
    state = cohort.start_state(split.users, local, sent["views"], seed=0)
    strategy.aggregate(cohort.train(state, sent, people, local, 0, round)[1])


@pytest.fixture(scope="module", params=["transformers", "open_clip"])
def towers(request: pytest.FixtureRequest, folder: Path) -> tuple[dict[str, str], Catalogue]:
    """What settings name, and items encoded by it."""
    if request.param == "open_clip":
        name = tiny_clip(folder / "clip", WIDTH)
        clip = ClipEncoder("tiny-clip", name.split(":", 2)[2])
        return {"tower": name}, catalogue(folder, clip, clip)
    vit, bert = (HuggingFaceEncoder(str(folder / name)) for name in ("vit", "bert"))
    return {"tower": str(folder / "bert"), "image_tower": str(folder / "vit")}, catalogue(folder, vit, bert)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_pictures_and_texts_start_as_they_are_and_everything_that_is_adapted_moves(
    kind: str, share: float, towers: tuple[dict[str, str], Catalogue], folder: Path
) -> None:
    names, items = towers
    strategy = start(folder, items, {"name": kind, **names, "share": share})
    assert torch.equal(strategy.build_views()["views"], start(folder, items, "frozen").build_views()["views"])
    encoders = strategy.generator.encoders
    assert all(isinstance(encoders[modality], Pretrained) for modality in ("image", "text"))
    assert len(encoders["image"].rows) == N_ITEMS - 1
    before = {name: value.clone() for name, value in strategy.state().items() if "encoders" in name}
    for round in (1, 2, 3):
        step(strategy, round)
    after = strategy.state()
    assert not [name for name, value in before.items() if torch.equal(value, after[name])]
    assert torch.equal(strategy.generator.encoded("image")[-1], strategy.generator.get_buffer("features_image")[-1])
    again = start(folder, items, {"name": kind, **names, "share": share})
    again.restore(after)
    torch.testing.assert_close(again.build_views()["views"], strategy.build_views()["views"], rtol=0, atol=0)


def test_a_convolutional_network_encodes_and_its_features_take_a_bottleneck(folder: Path) -> None:
    cnn, bert = (HuggingFaceEncoder(str(folder / name)) for name in ("cnn", "bert"))
    items = catalogue(folder, cnn, bert)
    assert items.features["image"].values.shape == (N_ITEMS, WIDTH)
    assert items.features["image"].encoder.startswith("huggingface:cnn:")
    strategy = start(folder, items, "bottleneck")
    before = strategy.build_views()["views"]
    step(strategy, 1)
    step(strategy, 2)
    assert not torch.equal(strategy.build_views()["views"], before)
    lora = {"name": "lora", "tower": str(folder / "bert"), "tokens": 12}
    encoders = start(folder, items, lora).generator.encoders
    assert isinstance(encoders["image"], Bottleneck), "no encoder of pictures is named"
    with pytest.raises(ConfigError, match="name the layers of a resnet that are adapted"):
        start(folder, items, {**lora, "image_tower": str(folder / "cnn")})


def test_states_of_a_vision_transformers_layers_are_kept_and_a_network_beside_it_learns(folder: Path) -> None:
    vit, bert = (HuggingFaceEncoder(str(folder / name)) for name in ("vit", "bert"))
    items = catalogue(folder, vit, bert)
    items.save(folder)
    assert encode_hidden(folder, vit, lambda *about: lambda step: None) == "image"
    hidden = load_hidden(folder, "image", N_ITEMS)
    assert hidden is not None
    assert hidden.values.shape == (N_ITEMS, 3, WIDTH)
    assert hidden.encoder == items.features["image"].encoder
    last = torch.nn.functional.normalize(hidden.values[:-1, -1], dim=1)  # the features are the last layer's states
    torch.testing.assert_close(last, torch.from_numpy(items.features["image"].values[:-1]), rtol=0, atol=2e-3)
    strategy = start(folder, items, "iisan")
    before = strategy.state()["model/encoders.image.out.weight"].clone()
    step(strategy, 1)
    assert not torch.equal(strategy.state()["model/encoders.image.out.weight"], before)


def test_what_an_encoder_cannot_read_is_said(folder: Path) -> None:
    vit, bert = (HuggingFaceEncoder(str(folder / name)) for name in ("vit", "bert"))
    with pytest.raises(DataError, match="encodes pictures alone"):
        vit.encode_texts(["a"])
    with pytest.raises(DataError, match="encodes texts alone"):
        bert.encode_images([folder / "images" / "0.png"])
    cnn = HuggingFaceEncoder(str(folder / "cnn"))
    with pytest.raises(DataError, match="layers of different widths"):
        cnn.encode_states([folder / "images" / "0.png"])
    items = catalogue(folder, vit, bert)
    with pytest.raises(DataError, match="has no weights"):
        start(folder, items, {"name": "lora", "tower": "open_clip:ViT-B-32"})
