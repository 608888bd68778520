"""Maps a catalogue's pictures and texts into one space, in which both of an item lie close and all towers answer.

Regularised canonical correlation analysis (Hotelling 1936; Vinod 1976) of the catalogue's two modalities: public features
in, no label used.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tessera.common.config.settings import TOWER_DIM
from tessera.common.errors import ConfigError
from tessera.common.towers.projections import orthonormal, polar
from tessera.common.utils import counter_rng

COMPONENTS = 256
"""Principal components of a modality that are used: the rest is noise to a catalogue of a few thousand items."""
RIDGE = 3.0
"""Added to the covariances, as a multiple of their mean eigenvalue."""

SIGNS = ("first", "second", "third", "fourth", "yes", "no", "odd")
"""Words that mean a place or a verdict, not what an item is about."""


@dataclass(frozen=True)
class SharedSpace:
    """Every item's unit vector in the shared space by modality, [n_items, TOWER_DIM] each."""

    image: Tensor
    text: Tensor


def shared_space(image: Tensor, text: Tensor, rows: Tensor) -> SharedSpace:
    """Map features `image` [n_items, d_image] and `text` [n_items, d_text] to one space, fitted on the items `rows` [n].

    Raises `ConfigError` when there are fewer items, or features, than dimensions.
    """
    narrowest = min(image.shape[1], text.shape[1])
    if narrowest < TOWER_DIM:
        raise ConfigError(f"{narrowest} features of a modality are too few for a shared space of {TOWER_DIM}")
    if len(rows) <= TOWER_DIM:
        raise ConfigError(f"{len(rows)} items with picture and text are too few for a shared space of {TOWER_DIM}")
    parts = [_components(part.double(), rows) for part in (image, text)]
    white = [part @ _shrink(part[rows]) for part in parts]
    u, s, vt = torch.linalg.svd(white[0][rows].T @ white[1][rows] / len(rows))
    # Directions in which the modalities agree count by how well they do.
    scale = s[:TOWER_DIM].sqrt()
    left, right = white[0] @ u[:, :TOWER_DIM] * scale, white[1] @ vt[:TOWER_DIM].T * scale
    return SharedSpace(normalize(left, dim=1).float(), normalize(right, dim=1).float())


def signs() -> Tensor:
    """Where the signs lie when readers are fitted: fixed orthonormal directions, [n_signs, TOWER_DIM].

    A benchmark's codebook has directions of its own, `word_directions`: what a word is answered by is learnt from questions.
    """
    return orthonormal(counter_rng.key("questions", "words"), len(SIGNS), TOWER_DIM)


def word_directions(n: int) -> Tensor:
    """Where a benchmark's words lie, signs included: orthonormal directions apart from all `signs`, [n, TOWER_DIM].

    A fitted reader that tells "first" from "second" by `signs` says nothing of these words, so that it begins at chance: a
    direction only drawn anew leans to one side of what the reader knows, and every comparison begins above or below chance.
    Raises `ConfigError` for more words than such directions.
    """
    if n > TOWER_DIM - len(SIGNS):
        raise ConfigError(f"{n} words are too many: {TOWER_DIM - len(SIGNS)} directions are apart from those of signs")
    drawn = counter_rng.normal(counter_rng.key("questions", "codebook"), torch.arange(n * TOWER_DIM)).view(n, TOWER_DIM)
    return polar(drawn - drawn @ signs().T @ signs())


def _components(features: Tensor, rows: Tensor) -> Tensor:
    """Principal components of all items, [n_items, n_components], found on `rows`."""
    centred = features - features[rows].mean(0)
    vectors = torch.linalg.eigh(centred[rows].T @ centred[rows]).eigenvectors
    components: Tensor = centred @ vectors[:, -COMPONENTS:]
    return components


def _shrink(part: Tensor) -> Tensor:
    """C^-1/2 of the covariance with a ridge."""
    values, vectors = torch.linalg.eigh(part.T @ part / len(part))
    root: Tensor = vectors * (values.clamp(min=0) + RIDGE * values.mean()).rsqrt() @ vectors.T
    return root
