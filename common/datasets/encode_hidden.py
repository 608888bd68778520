"""Encodes what the layers of an encoder hold of each item, for encoders behind the views that read it (IISAN)."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tessera.common.data.catalogue import load_catalogue, sentences
from tessera.common.data.hidden import HIDDEN, HiddenStates
from tessera.common.datasets.encode import PARTIAL, Begin, Job, encoded, picture_paths
from tessera.common.encoders.base import Encoder, Vectors
from tessera.common.errors import DataError


def encode_hidden(folder: Path, encoder: Encoder, begin: Begin, pictures: Path | None = None) -> str:
    """Write the states of `encoder`'s layers for the dataset's texts, or pictures, below `folder`; return the modality.

    After a kill it goes on where it was. Raises `DataError` for an encoder that shows no layers, and for items without what it
    reads.
    """
    states, modality = getattr(encoder, "encode_states", None), str(getattr(encoder, "reads", ""))
    if states is None:
        raise DataError("only encoders of transformers show their layers: pass a model's folder, or hf:NAME")
    catalogue = load_catalogue(folder, modalities=False)
    contents: tuple[Path | str | None, ...] = tuple(
        text or None for text in sentences(catalogue.titles, catalogue.texts)
    )
    if modality == "image":
        contents = picture_paths(folder, catalogue, pictures)
    if not any(contents):
        raise DataError(f"the items of {folder} have no {'pictures' if modality == 'image' else 'texts'}")
    n_states = len(states([next(content for content in contents if content)])[0])

    def flat(batch: Sequence[Path | str]) -> Vectors:
        return np.asarray(states(batch), dtype=np.float32).reshape(len(batch), -1)

    name = encoder.image_name if modality == "image" else encoder.text_name
    job = Job(modality, catalogue.items, contents, flat, f"{name}:states", encoder.weights.get(modality))
    found = encoded(job, folder / HIDDEN, begin, skip_unreadable=False)
    values = torch.from_numpy(found.values).view(len(catalogue), n_states, -1)
    HiddenStates(values, torch.from_numpy(found.present), name).save(folder, modality)
    for parts in (folder / HIDDEN).glob(f"{PARTIAL}*"):
        shutil.rmtree(parts)
    return modality
