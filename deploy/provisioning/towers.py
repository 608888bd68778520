"""Gives the devices of a run their towers, and questions to those that answer them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tessera.client.adapters.adapted_tower import CLASS, SIGNER, TOWER
from tessera.client.qa_client import QUESTIONS
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import FEATURES, load_catalogue, save_items
from tessera.common.errors import DataError
from tessera.common.towers.adapter_placement import NOT_SHARED
from tessera.common.towers.aligned_init import (
    READER,
    aligned_init_path,
    made_from,
    n_blocks,
    save_aligned_init,
    smallest,
)
from tessera.common.towers.io import tower_path
from tessera.common.utils.atomic_files import digest, write_json
from tessera.server.pretraining.aligned_init import shared_start


def class_of(node: int, settings: Settings) -> str:
    """The device class of a node: the settings' classes are given out in turn."""
    return settings.mosaic.classes[node % len(settings.mosaic.classes)]


def align(dataset: Path, settings: Settings) -> None:
    """Give the towers of a dataset the start that a run asks for, unless they have it. Raises `DataError` without towers."""
    classes: list[str] = sorted(set(settings.mosaic.classes))
    mosaic, readers = settings.mosaic, [tower_path(dataset, name) for name in classes]
    for name, reader in zip(classes, readers, strict=True):
        if not reader.is_file():
            raise DataError(
                f"{dataset} has no tower {name!r}: make it by `tessera towers fit {dataset} --classes {name}`"
            )
    if mosaic.pq is None or not mosaic.pq.blocks:
        return
    paths = {name: aligned_init_path(reader.parent, mosaic) for name, reader in zip(classes, readers, strict=True)}
    key = digest(b"".join([*(reader.read_bytes() for reader in readers), repr(NOT_SHARED).encode()]))
    if not all(made_from(path) == key for path in paths.values()):
        made = shared_start(dataset, classes, mosaic.rank, mosaic.pq, mosaic.alignment)
        for name, start in made.items():
            save_aligned_init(paths[name], start, key)


def partition_questions(dataset: Path, out: Path, n_nodes: int) -> tuple[Path, ...]:
    """Give each client of the benchmark a device folder: its own questions, and everybody's tests.

    Raises `DataError` when there are fewer clients than nodes.
    """
    clients = sorted((dataset / QUESTIONS).glob("client-*"))
    if len(clients) < n_nodes:
        raise DataError(f"{dataset} has questions for {len(clients)} devices, not {n_nodes}")
    catalogue, folders = load_catalogue(dataset, modalities=False), []
    for node, client in enumerate(clients[:n_nodes]):
        folder = out / f"node-{node}"
        save_items(catalogue, folder)
        asked = folder / QUESTIONS
        shutil.copytree(client, asked)
        shutil.copy(dataset / QUESTIONS / "codebook.safetensors", asked)
        (asked / "others").mkdir()
        for other in clients:
            if other != client:
                shutil.copy(other / "test.safetensors", asked / "others" / f"{other.name}.safetensors")
        folders.append(folder)
    return tuple(folders)


def give_towers(dataset: Path, folders: Sequence[Path], settings: Settings) -> None:
    """Give each node's folder what towers look at and the tower of its class, which `align` has seen to."""
    for node, folder in enumerate(folders):
        shutil.copytree(dataset / FEATURES, folder / FEATURES)
        give_tower(dataset, folder, class_of(node, settings), settings)


def give_tower(dataset: Path, folder: Path, device_class: str, settings: Settings) -> None:
    """Put the tower of a class, its start and the tower that signs into a device's folder."""
    source, tower = tower_path(dataset, device_class).parent, folder / TOWER
    tower.mkdir(parents=True)
    shutil.copy(source / READER, tower)
    shutil.copy(tower_path(dataset, smallest(settings.mosaic.classes)), tower / SIGNER)
    if n_blocks(settings.mosaic):
        shutil.copy(aligned_init_path(source, settings.mosaic), tower)
    write_json(tower / CLASS, {"class": device_class})
