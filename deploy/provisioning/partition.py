"""Shares a dataset's users out to device folders: their own events and the items' titles, no features."""

from collections.abc import Sequence
from pathlib import Path

from tessera.common.data.catalogue import Catalogue, load_catalogue, save_items
from tessera.common.data.interactions import Interactions, assign, load_interactions


def partition(dataset: Path, out: Path, n_nodes: int) -> tuple[Path, ...]:
    """Share a dataset's users out to `n_nodes` device folders below `out`: their own events and the items' titles only."""
    catalogue = load_catalogue(dataset, modalities=False)
    interactions = load_interactions(dataset, len(catalogue))
    folders = tuple(device_folders(out, n_nodes))
    for folder, rows in zip(folders, assign(interactions.users, n_nodes), strict=True):
        hand_out(catalogue, interactions.take(rows), folder)
    return folders


def partition_one(dataset: Path, folder: Path, node: int, n_nodes: int) -> None:
    """Give one device folder what `partition` would give node `node` of `n_nodes`."""
    catalogue = load_catalogue(dataset, modalities=False)
    interactions = load_interactions(dataset, len(catalogue))
    hand_out(catalogue, interactions.take(assign(interactions.users, n_nodes)[node]), folder)


def hand_out(catalogue: Catalogue, own: Interactions, folder: Path) -> None:
    """Give one device folder people's events and the items' titles."""
    save_items(catalogue, folder)
    own.save(folder)


def device_folders(out: Path, n_nodes: int) -> Sequence[Path]:
    """Where `partition` puts the folders of `n_nodes` nodes."""
    return [out / f"node-{node}" for node in range(n_nodes)]
