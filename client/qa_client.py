"""Trains and tests a device that answers questions about items: one client of the many-task benchmark.

questions/train.safetensors     what it learns from: its own, and private
questions/test.safetensors      its tests ("self"); questions/others/*.safetensors those of other clients ("others")
questions/codebook.safetensors  what choices stand for; features/ what readers see; tower/ see `client.adapters.adapted_tower`
tower/public-N.safetensors      public questions, for methods that share answers: server and devices have the same
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from tessera.client.adapters.adapted_tower import SIGNER, TOWER, AdaptedTower
from tessera.client.adapters.pq_lora import GLOBAL, LOCAL
from tessera.client.adapters.signature import last_layer_gradient, sign
from tessera.client.base import Client
from tessera.client.methods import LocalTraining, Method, answer, make_method
from tessera.client.methods.base import Taught
from tessera.client.owner.rules import Own
from tessera.client.qa_dataset import Asked, Dataset, QADataset
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import MosaicSettings
from tessera.common.data.catalogue import image_and_text, load_catalogue
from tessera.common.data.questions import Codebook, Questions, concatenate
from tessera.common.errors import DataError
from tessera.common.metrics.names import ACCURACY, USERS, MetricName
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.adapters import ADAPTERS, LOGITS, MODULE, AdapterUpdate, ClientAdapters
from tessera.common.protocol.messages import Task
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.common.towers.aligned_init import last_layer
from tessera.common.towers.io import load_reader
from tessera.common.towers.public_questions import PublicQuestions, public_path
from tessera.common.utils import counter_rng
from tessera.common.utils.torch_device import resolve_device

QUESTIONS = "questions"
SHARE_OF_OTHERS = 0.25
"""How many of another client's tests are asked: all of them would cost nine times as much as one's own."""
HELD_OUT = 0.1
"""Share of a device's own training questions that it never learns from: what settings are chosen on."""
CACHED = 16


@dataclass(frozen=True)
class QAContext:
    """What a device needs in every round: its adapted tower, the small tower that signs, and all questions.

    `lesson` gives some of the training questions as the adapted tower reads them, `signed` as the one that signs does; `public`
    are the public questions, for methods that share answers.
    """

    adapted: AdaptedTower
    signer: nn.Module
    train: Asked
    tests: Mapping[str, Dataset]
    catalogue: str
    lesson: Callable[[Tensor], Dataset]
    signed: Callable[[Tensor], Dataset]
    public: QADataset | None = None


class QAClient(Client):
    """One device that learns from its own questions."""

    def people(self) -> int:
        """One: the questions are one person's."""
        return 1

    def perform(self, task: Task, tensors: Tensors | None, inputs: Tensors) -> Update:
        """Do what the server asks. Raises `TensorsMissing` or `DataError`; private state changes only on success."""
        settings = task.settings
        own = self.equip(settings)
        if own.catalogue != task.catalogue:
            raise DataError(f"{self.folder} has other items than the server's catalogue; use one dataset")
        own_name = ClientAdapters(towers={self.client(task.run): own.adapted.tower_id})
        update = self._perform(task, tensors, own)
        return update.put(ADAPTERS, update[ADAPTERS] + own_name)

    def equip(self, settings: DeviceSettings) -> QAContext:
        """What this device needs. Raises `DataError` that names what it lacks."""
        return _equip(self.folder, settings.mosaic, settings.seed, resolve_device(settings.device))

    def score(self, variant: str, name: str, logits: Tensor, asked: Dataset, own: QAContext) -> MetricSums:
        """How well the device answers a set of tests by `logits`, with its branches as they are set now."""
        return _score(variant, name, logits, asked, own.adapted.tower_id)

    def own(self, task: Task) -> Own:
        """One device's own answers, which are no sum over people."""
        return Own(1, is_sum=False)

    def _perform(self, task: Task, tensors: Tensors | None, own: QAContext) -> Update:
        if task.kind == "item_statistics":
            return Update(sums=MetricSums({"users": 1.0, "events": float(len(own.train)), "withheld": 1.0}))
        if task.kind == "baselines":
            return Update(sums=self._baselines(own))
        if task.kind == "select":
            self.hear(task)
            self.tidy()
            return Update()
        if task.kind not in ("train", "evaluate"):
            raise DataError(f"a device that answers questions has no part in {task.kind!r}")
        task = self.hear(task)
        sent = {name.removeprefix(MODULE): value for name, value in self.hold(task, tensors).items()}
        work = self._train if task.kind == "train" else self._evaluate
        update = work(task, own, make_method(task.settings.mosaic.method), sent)
        self.conclude(task)
        return update

    def _train(self, task: Task, own: QAContext, method: Method, sent: Tensors) -> Update:
        """One round: take in what the server merged, learn, sign, keep the state, and give what is to be merged."""
        private, client, mosaic = self.private(task.run), self.client(task.run), task.settings.mosaic
        kept = own.adapted.take_up(private, task.round, client)
        method.prepare(own.adapted.model)
        rounds = task.settings.rounds
        for branch in method.begins_with(task.round / rounds) if sent else ():
            own.adapted.receive(sent, branch)
        rows = _seen(own.train, mosaic, task.round, rounds)
        key = counter_rng.key("lesson", task.settings.seed, self.folder.name if self.simulated else client, task.round)
        rates, taught = mosaic.rates(task.round, rounds), _taught(own.public, sent)
        local_training = LocalTraining(own.adapted.model, own.lesson(rows), mosaic, key, rates, taught)
        loss = method.train(local_training)
        sums = {"users": 1.0, "loss": loss, "nonfinite": float(not torch.tensor(loss).isfinite())}
        signature, more = torch.zeros(0), dict[str, Tensor]()
        if mosaic.method_spec.shares == "relevant":
            gradients = self._gradients(own, rows, local_training)
            noise_key = self.noise_key(task.run)
            signature, more = sign(mosaic.signature, kept, gradients, task.settings.seed, noise_key, task.round)
        own.adapted.keep(private, task, client, more)
        update = Update(weight=1.0, sums=MetricSums(sums))
        if own.public is not None:
            logits = answer(own.adapted.model, own.public, method.answers_with)
            said = logits.masked_fill(logits == -torch.inf, 0).cpu()
            learnt = {client: AdapterUpdate(own.adapted.tower_id, {}, {}, signature, said)}
        elif method.uploads:
            learnt = {client: own.adapted.adapter_update(method.uploads, signature)}
        else:
            return update
        return update.put(ADAPTERS, ClientAdapters(modules=learnt))

    def _gradients(self, own: QAContext, rows: Tensor, local_training: LocalTraining) -> Tensor:
        """What some batches of the round say of its questions, [n_batches, size]: the small frozen tower's last-layer
        gradients, or those by the answers of the device's own tower as it is now."""
        signature = local_training.training.signature
        if signature.of == "own":
            questions, reader = local_training.dataset, local_training.model.get_base_model()
            parameters = [last_layer(reader).get_parameter("bias").requires_grad_()]
        else:
            questions, reader = own.signed(rows), own.signer
            parameters = list(last_layer(reader).parameters())
        gradients = []
        for step in range(0, local_training.training.steps, signature.every):
            batch = local_training.rows(step)
            gradients.append(last_layer_gradient(questions.objective(reader, batch), parameters))
        if signature.of == "own":
            parameters[0].requires_grad_(False)
        return torch.stack(gradients)

    def _evaluate(self, task: Task, own: QAContext, method: Method, sent: Tensors) -> Update:
        """Answer all tests as the device stands: "before" what the server merged comes in, and in the last round also "after"
        and, where it comes in beside what the device learnt, with either branch alone."""
        model = own.adapted.model
        own.adapted.take_up(self.private(task.run), task.round + 1, self.client(task.run))
        method.prepare(model)
        learnt = own.lesson(_seen(own.train, task.settings.mosaic, task.round, task.settings.rounds))
        sums, answers = MetricSums({"evaluated": 1.0, "nonfinite": 0.0}), dict[str, Tensor]()
        for name, asked in own.tests.items():
            answers[name] = method.logits(model, learnt, asked)
            sums += self.score("before", name, answers[name], asked, own)
        if task.round == task.settings.rounds:
            if sent and own.public is None:  # answers are no branch
                own.adapted.receive(sent, method.receives)
                answers = {name: method.logits(model, learnt, asked) for name, asked in own.tests.items()}
            for name, asked in own.tests.items():
                sums += self.score("after", name, answers[name], asked, own)
                for branch in (LOCAL, GLOBAL) if sent and method.receives == GLOBAL else ():
                    sums += self.score(branch, name, answer(model, asked, [branch]), asked, own)
        return Update(sums=sums)

    def _baselines(self, own: QAContext) -> MetricSums:
        """How well chance answers, and the frozen tower before any training."""
        sums = MetricSums({"evaluated": 1.0})
        own.adapted.restart()
        for name, asked in own.tests.items():
            sums += _score("chance", name, asked.even, asked, own.adapted.tower_id)
            sums += self.score("frozen", name, answer(own.adapted.model, asked, [LOCAL, GLOBAL]), asked, own)
        return sums


@lru_cache(maxsize=CACHED)
def _equip(folder: Path, mosaic: MosaicSettings, seed: int, device: torch.device) -> QAContext:
    """Read and make all that does not change over a run, once for each process."""
    catalogue = load_catalogue(folder)
    try:
        image, text = (part.to(device) for part in image_and_text(catalogue))
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    adapted = AdaptedTower.make(folder, mosaic, seed, image, text)
    signer = load_reader(folder / TOWER / SIGNER).to(device)
    last_layer(signer).requires_grad_()
    with torch.no_grad():
        signer_item_embeddings = signer.embed_items(image, text)
    asked, codebook = folder / QUESTIONS, Codebook.load(folder / QUESTIONS / "codebook.safetensors")
    others = [Questions.load(path) for path in sorted((asked / "others").glob("*.safetensors"))]
    tests = {"self": Questions.load(asked / "test.safetensors")}
    if others:
        tests["others"] = concatenate([_some(test) for test in others])
    own = Questions.load(asked / "train.safetensors")
    kept = held_out(own.names, len(own))
    chosen = own.take(~kept)
    train, tests["validation"] = chosen.take(few(own.names, len(chosen), mosaic.questions)), own.take(kept)

    def read(questions: Questions, item_embeddings: Tensor) -> QADataset:
        return QADataset.of(questions, codebook, item_embeddings)

    asked_in = {name: read(test, adapted.item_embeddings) for name, test in tests.items()}
    return QAContext(
        adapted, signer, train, asked_in, catalogue.sha256,
        lambda rows: read(train.take(rows), adapted.item_embeddings),
        lambda rows: read(train.take(rows), signer_item_embeddings),
        _public(folder / TOWER, mosaic, adapted.item_embeddings),
    )  # fmt: skip


def _public(tower: Path, mosaic: MosaicSettings, item_embeddings: Tensor) -> QADataset | None:
    """The public questions as the device's reader is asked them, for methods that share answers."""
    path = public_path(tower, mosaic)
    if path is None or mosaic.method_spec.shares != "logits":
        return None
    public = PublicQuestions.load(path)
    return QADataset.offering(public.questions, public.offered, item_embeddings)


def _taught(public: QADataset | None, sent: Tensors) -> Taught | None:
    """What the server answers to the public questions, where that came down. Raises `DataError` where it does not fit."""
    logits = sent.get(LOGITS)
    if public is None or logits is None:
        return None
    if logits.shape != public.even.shape or not bool(logits.isfinite().all()):
        raise DataError(f"public answers were sent with shape {tuple(logits.shape)}, or are not finite")
    return Taught(public, logits.to(public.even.device) + public.even)


def held_out(names: Sequence[str], n: int) -> Tensor:
    """Which of a device's `n` training questions it never learns from, by the names of its tasks, [n]."""
    return counter_rng.uniform(counter_rng.key("validation", *names), torch.arange(n)) < HELD_OUT


def few(names: Sequence[str], n: int, most: int) -> Tensor:
    """At most so many rows of a device's own `n` questions, drawn by place, or all of them where that is 0."""
    draws = counter_rng.uniform(counter_rng.key("few", *names), torch.arange(n))
    return draws.argsort(stable=True)[: most or n].sort().values


def _some(test: Questions) -> Questions:
    return test.take(some(test.names, len(test)))


def some(names: Sequence[str], n: int) -> Tensor:
    """A share of another's `n` tests, drawn by place: the same rows for everybody."""
    draws = counter_rng.uniform(counter_rng.key("others", *names), torch.arange(n))
    return draws.argsort(stable=True)[: max(1, round(SHARE_OF_OTHERS * n))]


def _seen(train: Asked, mosaic: MosaicSettings, round: int, rounds: int) -> Tensor:
    """Rows of the questions seen by `round`: all of them or, in a dynamic stream, those of the tasks that have begun."""
    if mosaic.stream == "static":
        return torch.arange(len(train))
    begun = -(-round * len(train.names) // rounds)
    return (train.tasks < begun).nonzero()[:, 0]


def _score(variant: str, name: str, logits: Tensor, asked: Dataset, tower: str) -> MetricSums:
    """Accuracy of one device on one set of tests, also by device class; on its own also by family of tasks."""
    if bool(logits.isnan().any()):
        return MetricSums({"nonfinite": 1.0})
    groups = [name, f"{name}-{tower.partition('-')[0]}"]
    if name == "self":
        groups += [f"self-{asked.questions.names[0].partition('/')[0]}"]
    accuracy = asked.accuracy(logits)
    return MetricSums.of_metrics(
        {
            MetricName(variant, group, what): value
            for group in groups
            for what, value in ((ACCURACY, accuracy), (USERS, 1.0))
        }
    )
