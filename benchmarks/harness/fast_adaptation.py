"""Measures how soon a new device, given what a federation learnt, answers questions of a task that nobody had.

FedMosaic's Fig. 6: adapters start from the average of all devices' (P and Q of all, plain LoRA of the device's class), or,
where no adapter was shared, from nothing, and are trained on the unseen task alone.
"""

from collections.abc import Mapping
from pathlib import Path

from tessera.client.adapters.adapted_tower import AdaptedTower
from tessera.client.adapters.pq_lora import LOCAL
from tessera.client.methods import LocalTraining, answer
from tessera.client.qa_client import QUESTIONS
from tessera.client.qa_dataset import QADataset
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import image_and_text, load_catalogue
from tessera.common.data.questions import Codebook, Questions
from tessera.common.metrics.names import ACCURACY, MetricName, Scores
from tessera.common.protocol.tensors import Tensors
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import read_tensors
from tessera.server.adapters.relevance import uniform
from tessera.server.strategies.fedmosaic import FedMosaic

UNSEEN = "unseen"
AFTER = (0, 10, 40)
"""Steps after which the tests are asked."""


def adapt(settings: Settings, dataset: Path, devices: Mapping[str, Path], checkpoint: Path) -> Scores:
    """Accuracy in % on unseen tasks, "unseen/after-10/accuracy", meaned over tasks and one device of each class.

    `devices` has a folder of each class.
    """
    merged = _averages(settings, dataset, checkpoint)
    unseen = sorted((dataset / QUESTIONS).glob("unseen-*"))
    codebook = Codebook.load(dataset / QUESTIONS / "codebook.safetensors")
    image, text = image_and_text(load_catalogue(dataset))
    right: dict[int, list[float]] = {after: [] for after in AFTER}
    for name, folder in devices.items():
        adapted = AdaptedTower.make(folder, settings.mosaic, settings.seed, image, text)
        for task in unseen:
            train, test = (
                QADataset.of(Questions.load(task / f"{part}.safetensors"), codebook, adapted.item_embeddings)
                for part in ("train", "test")
            )
            _begin(adapted, merged.get(adapted.tower_id))
            for after, accuracy in _curve(
                adapted, train, test, settings, counter_rng.key("unseen", settings.seed, name, task.name)
            ):
                right[after].append(accuracy)
    return {
        MetricName(UNSEEN, f"after-{after}", ACCURACY): 100 * sum(ones) / len(ones) for after, ones in right.items()
    }


def _averages(settings: Settings, dataset: Path, checkpoint: Path) -> dict[str, Tensors]:
    """What all devices sent last, averaged and, where the method does that, taught in public, by the mark of a tower."""
    strategy = FedMosaic.make(settings, load_catalogue(dataset), dataset)
    strategy.restore(read_tensors(checkpoint)[0])
    sent = strategy.adapters
    if not sent.by_client:
        return {}
    averages = sent.merged(lambda signatures, groups: uniform(len(signatures), groups))
    by_tower = {sent.by_client[client].tower: own for client, own in averages.items()}
    if not strategy.distiller:
        return dict(by_tower)
    return dict(strategy.distiller.taught([sent.by_client[client] for client in sorted(averages)], by_tower))


def _begin(adapted: AdaptedTower, merged: Tensors | None) -> None:
    adapted.restart()
    if merged:
        adapted.receive(merged, LOCAL)


def _curve(
    adapted: AdaptedTower, train: QADataset, test: QADataset, settings: Settings, key: int
) -> list[tuple[int, float]]:
    """Accuracies after so many steps of the local branch alone."""
    mosaic, found, done = settings.mosaic, [], 0
    for after in AFTER:
        if after > done:
            training = mosaic.model_copy(update={"steps": after - done})
            LocalTraining(adapted.model, train, training, counter_rng.key(key, done)).fit([LOCAL], [LOCAL])
            done = after
        found.append((after, test.accuracy(answer(adapted.model, test, [LOCAL]))))
    return found
