"""Trains and tests a device that is asked in words: its tower is somebody's model, adapted by P and Q.

questions/train.jsonl     what it learns from: its own, and private
questions/test.jsonl      its tests ("self"); questions/others/*.jsonl those of other clients ("others")
tower/model/              the model; see `client.adapters.adapted_tower`
"""

from collections import Counter
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tessera.client.adapters.adapted_tower import TOWER, AdaptedTower
from tessera.client.language.dataset import TextDataset
from tessera.client.language.writing import score_writing
from tessera.client.qa_client import CACHED, QUESTIONS, QAClient, QAContext, few, held_out, some
from tessera.client.qa_dataset import Asked, Dataset
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import MosaicSettings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.text_questions import TextQuestions, concatenate
from tessera.common.errors import DataError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.towers.aligned_init import last_layer
from tessera.common.towers.models.base import TextModel
from tessera.common.towers.models.load import MODEL, load_text_model
from tessera.common.utils.torch_device import resolve_device

SIGNER_MODEL = "signer"
PROBED = 2
"""Of its questions, those that an adapter is tried on: a layer that gets no gradient from any is dead."""


class TextClient(QAClient):
    """One device that learns from its own questions in words."""

    def equip(self, settings: DeviceSettings) -> QAContext:
        """Its model, the one that signs, and its questions. Raises `DataError` that names what it lacks."""
        return _equip(self.folder, settings.mosaic, settings.seed, resolve_device(settings.device))

    def score(self, variant: str, name: str, logits: Tensor, asked: Dataset, own: QAContext) -> MetricSums:
        """Accuracy over questions with choices; of those answered in words the loss of a token and ROUGE-L."""
        sums = MetricSums()
        if bool((asked.even.isfinite() & logits.isnan().to("cpu")).any()):
            return MetricSums({"nonfinite": 1.0})
        if bool(asked.even.isfinite().any()):
            sums += super().score(variant, name, logits, asked, own)
        model = own.adapted.model.get_base_model()
        if isinstance(asked, TextDataset) and isinstance(model, TextModel) and model.writes and len(asked.written):
            sums += score_writing(variant, name, model, asked)
        return sums

    def _baselines(self, own: QAContext) -> MetricSums:
        """Beside chance and the frozen model, the choice that is most often an answer among the device's own questions."""
        sums = super()._baselines(own)
        for name, asked in own.tests.items():
            if isinstance(asked, TextDataset) and bool(asked.even.isfinite().any()):
                sums += super().score("frequent", name, _frequencies(own.train, asked), asked, own)
        return sums


def _frequencies(learnt: Asked, asked: TextDataset) -> Tensor:
    """How often each choice is an answer among the questions that were `learnt` from, [n, n_choices]."""
    times, found = Counter(getattr(learnt, "answers", ())), asked.even.clone()
    for row, offered in enumerate(asked.questions.choices):
        found[row, : len(offered)] = torch.tensor([float(times[choice]) for choice in offered])
    return found


@lru_cache(maxsize=CACHED)
def _equip(folder: Path, mosaic: MosaicSettings, seed: int, device: torch.device) -> QAContext:
    """Read and make all that does not change over a run, once for each process."""
    asked = folder / QUESTIONS
    own = TextQuestions.load(asked / "train.jsonl")
    kept = held_out(own.names, len(own))
    chosen = own.take(~kept)
    train = chosen.take(few(own.names, len(chosen), mosaic.questions))
    tests = {"self": TextQuestions.load(asked / "test.jsonl")}
    others = [TextQuestions.load(path) for path in sorted((asked / "others").glob("*.jsonl"))]
    if others:
        tests["others"] = concatenate([test.take(some(test.names, len(test))) for test in others])
    if bool(kept.any()):
        tests["validation"] = own.take(kept)
    model = load_text_model(folder / TOWER / MODEL).to(device)
    signer = load_text_model(folder / TOWER / SIGNER_MODEL / MODEL).to(device)
    last_layer(signer).requires_grad_()
    lessons, signed = TextDataset.of(train, model), partial(_read_by, train, signer)
    asked_in = {name: TextDataset.of(test, model) for name, test in tests.items()}
    adapted = AdaptedTower.adapt(model, partial(_probe, lessons), folder, mosaic, seed, torch.zeros(0, device=device))
    sha256 = load_catalogue(folder, modalities=False).sha256
    return QAContext(adapted, signer, train, asked_in, sha256, lessons.take, signed)


def _read_by(questions: TextQuestions, model: TextModel, rows: Tensor) -> TextDataset:
    """Some questions by the model that signs: tokens are cut when they are asked for."""
    return TextDataset.of(questions.take(rows), model)


def _probe(lessons: TextDataset, model: nn.Module) -> Tensor:
    """What the model makes of a few questions: of a language model all tokens' states have a part in it."""
    if not len(lessons):
        raise DataError("the device has no question to learn from")
    found: Tensor = model.loss(lessons.batch.take(torch.arange(min(PROBED, len(lessons)))))[None]  # type: ignore[operator]
    return found
