"""Gives the devices of a run their towers, and questions to those that answer them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tessera.client.adapters.adapted_tower import CLASS, SIGNER, TOWER
from tessera.client.language.client import SIGNER_MODEL
from tessera.client.qa_client import QUESTIONS
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import FEATURES, Catalogue, load_catalogue, save_items
from tessera.common.errors import DataError
from tessera.common.towers.adapter_placement import NOT_SHARED
from tessera.common.towers.aligned_init import (
    aligned_init_path,
    made_from,
    n_blocks,
    save_aligned_init,
    smallest,
    tower_folder,
)
from tessera.common.towers.models.folder import place, take_model
from tessera.common.towers.models.load import MODEL, READER, content
from tessera.common.towers.public_questions import public_path
from tessera.common.utils.atomic_files import digest, write_json
from tessera.deploy.provisioning.partition import device_folders
from tessera.server.pretraining.aligned_init import start_of
from tessera.server.pretraining.public_questions import make_public_questions


def class_of(node: int, settings: Settings) -> str:
    """The device class of a node: the settings' classes are given out in turn."""
    return settings.mosaic.classes[node % len(settings.mosaic.classes)]


def align(dataset: Path, settings: Settings) -> None:
    """Give the towers of a dataset the start and the public questions that a run asks for, unless they have them from the same
    content: models are taken over into the dataset, readers must lie there. Raises `DataError` without towers."""
    classes: list[str] = sorted(set(settings.mosaic.classes))
    mosaic, folders = settings.mosaic, {name: tower_folder(dataset, name) for name in classes}
    contents = []
    for name, folder in folders.items():
        if name in mosaic.models:
            take_model(mosaic.models[name], folder)
        try:
            contents.append(content(folder))
        except FileNotFoundError:
            raise DataError(
                f"{dataset} has no tower {name!r}: make it by `tessera towers fit {dataset} --classes {name}`"
            ) from None
    if mosaic.distillation:
        public = [path for folder in folders.values() if (path := public_path(folder, mosaic))]
        make_public_questions(dataset, mosaic.distillation.public_questions, public)
    if mosaic.pq is None or not mosaic.pq.blocks:
        return
    paths = {name: aligned_init_path(folder, mosaic) for name, folder in folders.items()}
    key = digest(repr((contents, NOT_SHARED)).encode())
    if not all(made_from(path) == key for path in paths.values()):
        made = start_of(dataset, classes, settings)
        for name, start in made.items():
            save_aligned_init(paths[name], start, key)


def partition_questions(dataset: Path, out: Path, n_nodes: int) -> tuple[Path, ...]:
    """Give each client of the benchmark a device folder: its own questions, and everybody's tests.

    Raises `DataError` when there are fewer clients than nodes.
    """
    clients, catalogue = _clients(dataset, n_nodes), load_catalogue(dataset, modalities=False)
    folders = tuple(device_folders(out, n_nodes))
    for node, folder in enumerate(folders):
        _hand_out(catalogue, clients, node, folder)
    return folders


def give_questions(dataset: Path, folder: Path, node: int, n_nodes: int) -> None:
    """Give one device folder what `partition_questions` would give node `node` of `n_nodes`. Raises `DataError`."""
    _hand_out(load_catalogue(dataset, modalities=False), _clients(dataset, n_nodes), node, folder)


def _clients(dataset: Path, n_nodes: int) -> list[Path]:
    """Where the questions of a dataset's clients lie."""
    clients = sorted((dataset / QUESTIONS).glob("client-*"))
    if len(clients) < n_nodes:
        raise DataError(f"{dataset} has questions for {len(clients)} devices, not {n_nodes}")
    return clients


def _hand_out(catalogue: Catalogue, clients: Sequence[Path], node: int, folder: Path) -> None:
    """Give a device folder the items, the questions of one client, and the tests of the others."""
    client, asked = clients[node], folder / QUESTIONS
    save_items(catalogue, folder)
    shutil.copytree(client, asked)
    if (codebook := client.with_name("codebook.safetensors")).is_file():
        shutil.copy(codebook, asked)
    (asked / "others").mkdir()
    for other in clients:
        for test in other.glob("test.*") if other != client else ():
            shutil.copy(test, asked / "others" / f"{other.name}{test.suffix}")


def equip(dataset: Path, folder: Path, node: int, settings: Settings) -> None:
    """Give a node's folder what towers look at and the tower of its class, which `align` has seen to."""
    if not settings.in_words:
        shutil.copytree(dataset / FEATURES, folder / FEATURES)
    give_tower(dataset, folder, class_of(node, settings), settings)


def give_tower(dataset: Path, folder: Path, device_class: str, settings: Settings) -> None:
    """Put the tower of a class, its start and the tower that signs into a device's folder."""
    source, tower = tower_folder(dataset, device_class), folder / TOWER
    signer = tower_folder(dataset, smallest(dataset, settings.mosaic.classes))
    tower.mkdir(parents=True)
    if (source / MODEL).is_dir():
        place(source / MODEL, tower / MODEL)
        place(signer / MODEL, tower / SIGNER_MODEL / MODEL)
    else:
        shutil.copy(source / READER, tower)
        shutil.copy(signer / READER, tower / SIGNER)
    if n_blocks(settings.mosaic):
        shutil.copy(aligned_init_path(source, settings.mosaic), tower)
    if settings.mosaic.method_spec.shares == "logits" and (public := public_path(source, settings.mosaic)):
        shutil.copy(public, tower)
    write_json(tower / CLASS, {"class": device_class})
