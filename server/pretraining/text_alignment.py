"""Aligns models of texts word by word: all are given the same public texts, and what a word's tokens see is averaged.

So models with different tokenizers can be aligned. The answers whose gradients `effects` goes by are what all models have: the
log-likelihood of words where all are language models, and otherwise how alike texts are to each model.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tessera.common.data.catalogue import load_catalogue, sentences
from tessera.common.errors import ConfigError, DataError
from tessera.common.registry.methods import PQSettings
from tessera.common.towers.adapter_placement import placement
from tessera.common.towers.aligned_init import stacks_of, tower_folder
from tessera.common.towers.models.base import TextModel
from tessera.common.towers.models.load import MODEL, load_text_model
from tessera.common.towers.models.words import WordTokens
from tessera.common.towers.projections import Projections, random_projections
from tessera.common.utils import counter_rng
from tessera.common.utils.torch_device import one_thread
from tessera.server.pretraining.activations import watched
from tessera.server.pretraining.alignment import ALIGNMENTS, Activations

N_TEXTS, N_WORDS = 96, 32
"""Public texts that models are aligned on, and words of each."""
TEXTS_AT_ONCE = 16
DIRECTIONS = 3
"""Random directions of the answers by which gradients are taken."""


@one_thread()
def words_start(
    dataset: Path, classes: Sequence[str], rank: int, pq: PQSettings, seed: int = 0
) -> dict[str, dict[str, Projections]]:
    """The frozen matrices of every place that all models have, by device class.

    The same files give the same start; of random matrices each `seed` gives others. Raises `DataError` for a model
    that cannot be loaded or a dataset without texts, and `ConfigError` where models have no place in common, or `rank` or the
    blocks do not fit.
    """
    texts = public_texts(dataset)
    models = {name: load_text_model(tower_folder(dataset, name) / MODEL) for name in classes}
    placed = {
        name: placement(model, stacks_of(model), pq.blocks, pq.queries_and_keys)[1] for name, model in models.items()
    }
    shared = common_places(placed)
    if pq.alignment == "random":
        return {
            name: _drawn(models[name], placed[name], shared, rank, (number, seed))
            for number, name in enumerate(classes)
        }
    predict = all(model.writes for model in models.values())
    texts = read_by_all(texts, list(models.values()))
    recorded = {}
    for name in list(models):
        own = {module: place for module, place in placed[name].items() if place in shared}
        recorded[name] = activations(models.pop(name), own, texts, predict)
    start: dict[str, dict[str, Projections]] = {name: {} for name in classes}
    for place in sorted(shared):
        aligned = ALIGNMENTS[pq.alignment](
            [recorded[name].pop(place) for name in classes], rank, counter_rng.key("start", place)
        )
        for name, own_start in zip(classes, aligned, strict=True):
            if not all(bool(part.isfinite().all()) for part in (own_start.a, own_start.b, own_start.offset)):
                raise ConfigError(
                    f"{name}: what the model answers does not depend on {place!r}: an adapter would do nothing"
                )
            start[name][place] = own_start
    return start


def _drawn(
    model: TextModel, placed: Mapping[str, str], shared: Collection[str], rank: int, salt: tuple[int, int]
) -> dict[str, Projections]:
    """Independent matrices for a model's shared places."""
    found = {}
    for module, place in placed.items():
        if place in shared:
            d_out, d_in = model.get_parameter(f"{module}.weight").shape
            found[place] = random_projections(counter_rng.key("start", place, *salt), d_in, d_out, rank)
    return found


def common_places(placed: Mapping[str, Mapping[str, str]]) -> frozenset[str]:
    """The places that all classes have. Raises `ConfigError` where there is none."""
    shared = frozenset.intersection(*(frozenset(own.values()) for own in placed.values()))
    if not shared:
        told = "; ".join(f"{name}: {', '.join(sorted(own.values())[:3])}" for name, own in placed.items())
        raise ConfigError(f"the models have no place in common where P and Q could be shared ({told})")
    return shared


def public_texts(dataset: Path, most: int | None = N_TEXTS) -> list[list[str]]:
    """Words of titles and texts of items, of all or at `most` so many, spread evenly over the catalogue.

    Raises `DataError` where there are none.
    """
    catalogue = load_catalogue(dataset, modalities=False)
    texts = [text.split()[:N_WORDS] for text in sentences(catalogue.titles, catalogue.texts) if text.strip()]
    if len(texts) < 2:
        raise DataError(f"{dataset} has no titles or texts of items, on which models could be aligned")
    places = torch.linspace(0, len(texts) - 1, min(most or len(texts), len(texts))).long()
    return [texts[place] for place in places.tolist()]


def read_by_all(texts: Sequence[Sequence[str]], models: Sequence[TextModel]) -> list[list[str]]:
    """The words of each text that all models read: some read few tokens. Raises `DataError` where there are none."""
    kept = [model.cut(texts).kept(texts) for model in models]
    short = [list(text[: min(counts)]) for text, *counts in zip(texts, *kept, strict=True)]
    if any(not text for text in short):
        raise DataError("a public text has no word that all models read")
    return short


def activations(
    model: TextModel, places: Mapping[str, str], texts: Sequence[Sequence[str]], predict: bool
) -> dict[str, Activations]:
    """What the modules of `places` received and wrote for each word, by place, with gradients of the model's answers: of words'
    likelihoods, or with `predict` false of texts' likeness. Rows are words, the same for all models."""
    parts: dict[str, list[Activations]] = {place: [] for place in places.values()}
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        words = model.cut(texts[first : first + TEXTS_AT_ONCE])
        answers = _likelihoods if predict else _likeness
        for place, found in _watched(model, places, words, partial(answers, model), first).items():
            parts[place].append(found)
    return {
        place: Activations(
            torch.cat([one.inputs for one in found]),
            torch.cat([one.outputs for one in found]),
            torch.cat([one.gradients for one in found if one.gradients is not None]),
        )
        for place, found in parts.items()
    }


def _likelihoods(model: TextModel, words: WordTokens) -> Tensor:
    found = model.word_likelihoods(words)
    if found is None:
        raise ConfigError("this model predicts no words")
    return found


def _likeness(model: TextModel, words: WordTokens) -> Tensor:
    vectors = model.pooled(words)
    return vectors @ vectors.T


def _watched(
    model: TextModel,
    places: Mapping[str, str],
    words: WordTokens,
    answers: Callable[[WordTokens], Tensor],
    salt: int,
) -> dict[str, Activations]:
    """Run a model once, and take the gradients of its answers in a few random directions, the same for all models."""
    with watched(model, places) as (received, outputs):
        answered = answers(words)
    if missing := sorted(set(places.values()) - outputs.keys()):
        raise ConfigError(
            f"the model does not call its layer for {missing[0]!r}: an adapter there would have no effect"
        )
    pulls = []
    for way in range(DIRECTIONS):
        drawn = counter_rng.normal(counter_rng.key("way", salt, way), torch.arange(answered.numel())).view_as(answered)
        pulls.append(torch.autograd.grad(answered, list(outputs.values()), drawn.to(answered), retain_graph=True))
    return {
        place: Activations(
            words.mean(received[place].float()),
            words.mean(outputs[place].detach().float()),
            torch.cat([words.total(pull[number].float()) for pull in pulls]),
        )
        for number, place in enumerate(outputs)
    }
