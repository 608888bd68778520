"""Encodes what the layers of a text encoder hold of each item, for encoders behind the views that read it (IISAN)."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tessera.common.data.catalogue import load_catalogue, sentences
from tessera.common.data.hidden import HIDDEN, HiddenStates
from tessera.common.datasets.encode import PARTIAL, Begin, Job, encoded
from tessera.common.encoders.base import Encoder, Vectors
from tessera.common.errors import DataError


def encode_hidden(folder: Path, encoder: Encoder, begin: Begin) -> str:
    """Write the states of `encoder`'s layers for the dataset's texts below `folder`; return the modality.

    After a kill it goes on where it was. Raises `DataError` for an encoder that shows no layers, and for items without texts.
    """
    states = getattr(encoder, "encode_text_states", None)
    if states is None:
        raise DataError("only encoders of transformers show their layers: pass a model's folder, or hf:NAME")
    catalogue = load_catalogue(folder, modalities=False)
    texts = tuple(text or None for text in sentences(catalogue.titles, catalogue.texts))
    if not any(texts):
        raise DataError(f"the items of {folder} have no texts")
    n_states = len(states([next(text for text in texts if text)])[0])

    def flat(batch: Sequence[str]) -> Vectors:
        return np.asarray(states(batch), dtype=np.float32).reshape(len(batch), -1)

    job = Job("text", catalogue.items, texts, flat, f"{encoder.text_name}:states", encoder.weights.get("text"))
    found = encoded(job, folder / HIDDEN, begin, skip_unreadable=False)
    values = torch.from_numpy(found.values).view(len(catalogue), n_states, -1)
    HiddenStates(values, torch.from_numpy(found.present), encoder.text_name).save(folder, "text")
    for parts in (folder / HIDDEN).glob(f"{PARTIAL}*"):
        shutil.rmtree(parts)
    return "text"
