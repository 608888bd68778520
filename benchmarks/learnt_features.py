"""python -m tessera.benchmarks.learnt_features RUN OUT [--data DATA] [--name adapted]

Makes a dataset of which one modality is what a run learnt to show of the contents: RUN's dataset, and beside its features each
item's views by RUN's best round, every one of length 1, summed and taken to length 1 again. RUN knows items by their contents
alone (views.item_ids: false). So another run can start from what this one learnt (views.start_from), or show it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.nn.functional import normalize

from tessera.common.data.catalogue import Features, load_catalogue
from tessera.common.data.folder_kinds import DATASET
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets.dataset_folder import replacing, write_description
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_json
from tessera.deploy.provisioning.datasets import prepared_dataset
from tessera.server.live.content_views import content_views
from tessera.server.live.continuation import read_source


def write(run: Path, dataset: Path, out: Path, name: str) -> None:
    """Write the dataset with one modality more. Raises `DataError` where `out` is in use or the dataset has a modality of that
    `name`, `RunError` without a run."""
    source, catalogue, about = read_source(run), load_catalogue(dataset), read_json(dataset / DATASET)
    if name in catalogue.features:
        raise DataError(f"{dataset} has a modality {name!r} already: give another --name")
    views = content_views(source.settings, source.tensors, catalogue, catalogue, dataset)
    vectors = normalize(normalize(views, dim=-1).sum(0), dim=-1).numpy()
    learnt = Features(vectors, np.ones(len(vectors), dtype=bool), f"{source.settings.name}, round {source.round}")
    with replacing(out) as folder:
        replace(catalogue, features={**catalogue.features, name: learnt}).save(folder)
        load_interactions(dataset, len(catalogue)).save(folder)
        write_description(folder, {key: about[key] for key in ("name", "kind", "source", "filters", "rules")})


def main() -> None:
    """Write it, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--name", default="adapted", help="what the modality is called")
    asked = parser.parse_args()
    dataset = prepared_dataset(read_source(asked.run).settings.data, asked.data)
    write(asked.run, dataset, asked.out, asked.name)
    print(json.dumps({"dataset": str(asked.out), "features": read_json(asked.out / DATASET)["features"][asked.name]}))


if __name__ == "__main__":
    main()
