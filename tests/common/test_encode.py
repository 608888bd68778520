"""Encoding a dataset's own pictures and texts: the same features as directly, whatever happens in between."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.hidden import load_hidden
from tessera.common.datasets import Options, convert, describe
from tessera.common.datasets.encode import BATCH, ENCODED, encode_dataset
from tessera.common.datasets.encode_hidden import encode_hidden
from tessera.common.encoders import make_encoder
from tessera.common.encoders.builtin import BuiltinEncoder
from tessera.common.encoders.clip import ClipEncoder
from tessera.common.encoders.towers import KINDS, TowerEncoder, encoder_path, load_encoder, pixels, save_encoder
from tessera.common.errors import DataError
from tessera.common.towers.transformer import SIZES, words
from tessera.common.utils.atomic_files import read_json
from tests.support.small_towers import tiny_text_tower

N_ITEMS = 150
MISSING = 7
"""Item without a picture; the one after it has no title."""
FILES = ("image.safetensors", "text.safetensors")


def quiet(modality: str, total: int, done: int) -> Callable[[int], None]:
    return lambda _: None


def save_towers(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    for kind, tower in KINDS.items():
        save_encoder(tower(SIZES["tiny"]), encoder_path(folder, "tiny", kind), {})


def write_raw(raw: Path, n_items: int) -> None:
    raw.mkdir()
    rng = np.random.default_rng(0)
    rows = ["item,title,image"]
    for item in range(n_items):
        Image.fromarray(rng.integers(0, 256, (20, 14, 3), dtype=np.uint8)).save(raw / f"{item}.png")
        title = "" if item == MISSING + 1 else f"Vase {item} of glass"
        rows.append(f"{item},{title},{'' if item == MISSING else f'{item}.png'}")
    (raw / "items.csv").write_text("\n".join(rows) + "\n")
    (raw / "events.csv").write_text("user,item\n" + "".join(f"ann,{item}\n" for item in range(n_items)))


def make_dataset(folder: Path, n_items: int = N_ITEMS, images: bool = True) -> Path:
    """A dataset with features of another encoder, and towers."""
    write_raw(folder / "raw", n_items)
    options = Options(0, 0, images=images, encode=BuiltinEncoder())
    convert("table", folder / "raw", folder / "set", options)
    save_towers(folder / "set" / "towers", seed=0)
    return folder / "set"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path)


def encoder(dataset: Path) -> TowerEncoder:
    return TowerEncoder(dataset / "towers", "tiny", "cpu")


def contents(dataset: Path) -> list[bytes]:
    return [(dataset / "features" / name).read_bytes() for name in FILES]


def parts(dataset: Path) -> list[Path]:
    return sorted(dataset.glob("features/.partial-*/*.safetensors"))


def test_features_are_what_the_tower_says_and_say_what_they_were_made_from(dataset: Path) -> None:
    assert encode_dataset(dataset, encoder(dataset), quiet) == ("image", "text")
    catalogue = load_catalogue(dataset)
    image, text = catalogue.features["image"], catalogue.features["text"]
    assert (np.flatnonzero(~image.present), np.flatnonzero(~text.present)) == ([MISSING], [MISSING + 1])
    towers = [load_encoder(encoder_path(dataset / "towers", "tiny", kind), kind) for kind in KINDS]
    pictures = torch.stack([pixels(dataset / path) for path in catalogue.images if path])
    np.testing.assert_allclose(image.values[image.present], towers[0](pictures).numpy(), atol=1e-5)
    told = words([title for title in catalogue.titles if title])
    np.testing.assert_allclose(text.values[text.present], towers[1](told).numpy(), atol=1e-5)
    about = describe(dataset)
    assert about[ENCODED]["image"]["weights_sha256"] == encoder(dataset).weights["image"]
    assert about[ENCODED]["image"]["encoder"] == about["features"]["image"]["encoder"] == image.encoder
    assert not parts(dataset)


KILLED = """
import os, signal, sys
from pathlib import Path
from tessera.common.datasets.encode import encode_dataset
from tessera.common.encoders.towers import TowerEncoder

def begin(modality, total, done):
    return lambda n: os.kill(os.getpid(), signal.SIGKILL) if modality == "text" else None

dataset = Path(sys.argv[1])
encode_dataset(dataset, TowerEncoder(dataset / "towers", "tiny", "cpu"), begin)
"""


def test_a_killed_process_goes_on_where_it_was_and_the_old_features_stay_until_then(dataset: Path) -> None:
    encode_dataset(dataset, encoder(dataset), quiet)
    undisturbed = contents(dataset)
    encode_dataset(dataset, BuiltinEncoder(), quiet)
    old = contents(dataset)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(dataset)], env=os.environ | {"PYTHONPATH": "."})
    assert killed.returncode == -signal.SIGKILL
    assert contents(dataset) == old
    assert len(parts(dataset)) == -(-N_ITEMS // BATCH) + 1

    begun: dict[str, tuple[int, int]] = {}

    def begin(modality: str, total: int, done: int) -> Callable[[int], None]:
        begun[modality] = (total, done)
        return lambda _: None

    encode_dataset(dataset, encoder(dataset), begin)
    assert begun == {"image": (N_ITEMS - 1, N_ITEMS - 1), "text": (N_ITEMS - 1, BATCH)}
    assert contents(dataset) == undisturbed
    assert not parts(dataset)


def test_the_same_is_not_encoded_again_but_other_weights_and_other_contents_are(dataset: Path) -> None:
    encode_dataset(dataset, encoder(dataset), quiet)
    assert encode_dataset(dataset, encoder(dataset), quiet) == ()
    before = contents(dataset)
    Image.new("RGB", (9, 9), "red").save(dataset / load_catalogue(dataset).images[0])
    assert encode_dataset(dataset, encoder(dataset), quiet) == ("image",)
    assert [old == new for old, new in zip(before, contents(dataset), strict=True)] == [False, True]
    save_towers(dataset / "towers", seed=1)
    assert encode_dataset(dataset, encoder(dataset), quiet) == ("image", "text")


def test_features_that_were_changed_since_are_encoded_again(dataset: Path) -> None:
    encode_dataset(dataset, encoder(dataset), quiet)
    undisturbed = contents(dataset)
    catalogue = load_catalogue(dataset)
    catalogue.features["image"].values[0] += 1
    catalogue.save(dataset)
    assert encode_dataset(dataset, encoder(dataset), quiet) == ("image",)
    assert contents(dataset) == undisturbed


def test_an_unreadable_picture_is_named_and_costs_its_own_batch_only(dataset: Path) -> None:
    broken = dataset / load_catalogue(dataset).images[-1]
    whole, old = broken.read_bytes(), contents(dataset)
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"item '{N_ITEMS - 1}'.*{broken.name}.*--skip-unreadable"):
        encode_dataset(dataset, encoder(dataset), quiet)
    assert contents(dataset) == old
    assert len(parts(dataset)) == (N_ITEMS - 1) // BATCH
    encode_dataset(dataset, encoder(dataset), quiet, skip_unreadable=True)
    present = load_catalogue(dataset).features["image"].present
    assert np.flatnonzero(~present).tolist() == [MISSING, N_ITEMS - 1]
    broken.write_bytes(whole)
    encode_dataset(dataset, encoder(dataset), quiet)
    assert load_catalogue(dataset).features["image"].present.sum() == N_ITEMS - 1


def test_pictures_of_another_folder_are_found_by_the_items_names(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 5, images=False)
    with pytest.raises(DataError, match=r"named after an item, such as 0\.jpg"):
        encode_dataset(dataset, encoder(dataset), quiet, dataset)
    assert encode_dataset(dataset, encoder(dataset), quiet) == ("text",)
    (tmp_path / "raw" / "3.png").unlink()
    assert encode_dataset(dataset, encoder(dataset), quiet, tmp_path / "raw") == ("image",)
    assert load_catalogue(dataset).features["image"].present.tolist() == [True, True, True, False, True]


def test_the_answers_of_questions_are_not_taken_from_under_them(dataset: Path) -> None:
    description = (dataset / "dataset.json").read_text()
    (dataset / "dataset.json").write_text(description.replace('"table"', '"questions"'))
    assert read_json(dataset / "dataset.json")["kind"] == "questions"
    with pytest.raises(DataError, match="--encode"):
        encode_dataset(dataset, encoder(dataset), quiet)


def test_a_tower_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    save_towers(tmp_path, seed=0)
    path = encoder_path(tmp_path, "tiny", "image")
    with pytest.raises(DataError, match="for image, not text"):
        load_encoder(path, "text")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"tiny/image\.safetensors"):
        TowerEncoder(tmp_path, "tiny")


def test_clip_without_weights_says_what_to_pass() -> None:
    with pytest.raises(DataError, match="no file, nor weights"):
        ClipEncoder("ViT-B-32", "nowhere.pt")


def test_a_text_encoder_of_transformers_by_its_folder_keeps_what_its_layers_hold(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, n_items=70)
    pictures = load_catalogue(folder).features["image"]
    encoder = make_encoder(str(tiny_text_tower(tmp_path / "tower")))
    assert encode_dataset(folder, encoder, quiet) == ("text",)
    encode_hidden(folder, encoder, quiet)
    catalogue, hidden = load_catalogue(folder), load_hidden(folder, "text", 70)
    assert catalogue.features["image"].sha256 == pictures.sha256  # it reads no pictures, and leaves theirs alone
    text = catalogue.features["text"]
    assert hidden is not None
    assert hidden.values.shape == (70, 3, 16)
    assert hidden.encoder == text.encoder
    assert hidden.encoder.startswith("huggingface:tower:")
    assert not hidden.present[MISSING + 1]
    assert torch.equal(hidden.present, torch.from_numpy(text.present))
    last = torch.nn.functional.normalize(hidden.values[:, -1], dim=1)  # the last layer's states are the features
    torch.testing.assert_close(last[hidden.present], torch.from_numpy(text.values)[hidden.present], rtol=0, atol=2e-3)
    with pytest.raises(DataError, match=r"70 rows for 71 items: encode again, with --hidden"):
        load_hidden(folder, "text", 71)
    with pytest.raises(DataError, match="only encoders of transformers show their layers"):
        encode_hidden(folder, BuiltinEncoder(), quiet)
    with pytest.raises(DataError, match="nor a folder of a transformers model"):
        make_encoder(str(tmp_path / "nowhere"))
