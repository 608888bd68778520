"""Runs one federation of devices that answer questions, and adds what only a bench may see of it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tessera.benchmarks.harness.fast_adaptation import adapt
from tessera.client.qa_client import QUESTIONS, QAClient
from tessera.common.config.settings import Settings
from tessera.common.data.questions import Questions
from tessera.common.data.text_questions import TextQuestions
from tessera.common.metrics.names import AFTER, BEFORE, ROUGE, MetricName, written
from tessera.common.towers.aligned_init import bytes_at_places, tower_folder
from tessera.common.towers.models.load import load_tower
from tessera.deploy.executors.run import DEVICES, make_job, run_job
from tessera.deploy.provisioning.towers import class_of
from tessera.server.pretraining.fit_readers import ensure_towers

Content = dict[str, Any]
Tell = Callable[[str], None]


def train_questions(settings: Settings, dataset: Path, run_dir: Path, tell: Tell) -> Content:
    """Train, and return the result with the devices' families in the order of its relevance matrix."""
    if not settings.in_words:
        ensure_towers(dataset, settings, tell)
    job = make_job(settings, dataset, run_dir, resume=False, overwrite=True)
    try:
        ended = run_job(job, "inline", lambda line: None)
        result = ended.to_json()
        # Beside the other rows: as devices stand before any merge.
        before = {replace(name, part=_shown_as(name), baseline=name.part): v for name, v in ended.baselines.items()}
        result["baselines"] = written(before)
        checkpoint = sorted((run_dir / "checkpoints").glob("*.safetensors"))[-1]
        devices = {class_of(node, settings): folder for node, folder in enumerate(job.devices)}
        if not settings.in_words:
            result["scores"] |= written(adapt(settings, dataset, devices, checkpoint))
        result["uploads"] = uploads(settings, dataset)
        if relevance := result["strategy"].get("relevance"):
            relevance["families"] = _families(job.devices, relevance.pop("clients"))
    finally:
        for folder in (DEVICES, "checkpoints"):
            shutil.rmtree(run_dir / folder, ignore_errors=True)
    return result


def _shown_as(name: MetricName) -> str:
    """How a device stands whose figures a baseline's stand beside: answers are written at the end alone."""
    return AFTER if name.metric == ROUGE else BEFORE


def _families(devices: tuple[Path, ...], clients: list[str]) -> list[str]:
    """The family of each client's tasks; of simulated devices, whose names can be told."""
    family = {}
    for folder in devices:
        path, words = (folder / QUESTIONS / f"test.{kind}" for kind in ("safetensors", "jsonl"))
        asked = TextQuestions.load(words) if words.is_file() else Questions.load(path)
        family[QAClient(folder, simulated=True).client("")] = asked.names[0].partition("/")[0]
    return [family[client] for client in clients]


def uploads(settings: Settings, dataset: Path) -> Content:
    """Bytes up per client and round of the layers with P and Q, by device class, beside LoRA of the same layers."""
    found: Content = {}
    for name in dict.fromkeys(settings.mosaic.classes):
        pq, lora = bytes_at_places(load_tower(tower_folder(dataset, name)), settings.mosaic)
        found[name] = {"pq": pq, "lora": lora}
    return found
