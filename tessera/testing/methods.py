"""What every method of training adapters must fulfil, on a tiny reader and made-up questions."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tessera.client.adapters.attach import attach, lora_tensors, pq_tensors, receive
from tessera.client.adapters.pq_lora import GLOBAL, LOCAL
from tessera.client.methods import LocalTraining, Method, make_method
from tessera.client.methods.base import learnt
from tessera.client.qa_dataset import QADataset
from tessera.common.config.settings import MosaicSettings
from tessera.common.data.questions import PICTURE, TEXT, WORD, Codebook, Questions
from tessera.common.registry.methods import METHODS
from tessera.common.towers.qa_reader import QAReader
from tessera.common.towers.transformer import TowerSize
from tessera.common.utils import counter_rng

if TYPE_CHECKING:
    from peft import PeftModel

N_ITEMS = 40


def draw(purpose: str, *shape: int) -> Tensor:
    """Normal draws of a shape, by what they are for."""
    size = int(torch.tensor(shape).prod())
    return counter_rng.normal(counter_rng.key("methods-test", purpose), torch.arange(size)).view(shape)


@cache
def asked(n: int = 200, purpose: str = "own") -> QADataset:
    """Which of two items has more of the first feature: a poster and an overview, answered in words."""
    features = draw("features", N_ITEMS, 8)
    items = (draw(purpose, n, 2).abs() * 1000).long() % N_ITEMS
    kinds = torch.tensor([PICTURE, TEXT]).expand(n, 2)
    choices = torch.stack([torch.full((n, 2), WORD), torch.tensor([0, 1]).expand(n, 2)], -1)
    words, image, text = (normalize(draw(part, rows, 64), dim=1) for part, rows in (("w", 2), ("i", 40), ("t", 40)))
    more = features[items, 0].argmax(1)
    questions = Questions(
        torch.zeros(n, dtype=torch.int64),
        torch.stack([kinds, items], -1),
        choices,
        more,
        ("more",),
        ("which has more",),
    )
    with torch.no_grad():
        item_embeddings = reader().embed_items(features, features)
    return QADataset.of(questions, Codebook(words, image, text, ("first", "second")), item_embeddings)


def reader() -> QAReader:
    """A frozen reader, always the same."""
    torch.manual_seed(0)
    return QAReader(TowerSize(32, 2), 8, 8).eval()


class MethodContract:
    """Inherit it, and name a method of the registry; `own` are settings of its own."""

    name: str
    own: ClassVar[Mapping[str, Any]] = {}

    def test_training_moves_branches_alone_and_can_be_repeated(self) -> None:
        """The tower stays as it is, the loss is finite, and the same key gives the same branches."""
        results = []
        for _ in range(2):
            model = self._adapted()
            before = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
            started = [_branch(model, branch) for branch in (LOCAL, GLOBAL)]
            loss = self._method().train(self._training(model))
            assert bool(torch.tensor(loss).isfinite())
            assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
            trained = [_branch(model, branch) for branch in (LOCAL, GLOBAL)]
            assert any(not torch.equal(*pair) for pair in zip(started, trained, strict=True))
            results.append(torch.cat(trained))
        torch.testing.assert_close(results[0], results[1])

    def test_what_it_sends_has_been_trained_and_fits_where_it_takes_it_in(self) -> None:
        """By name and shape: the server averages what devices send, and gives it back."""
        model, method = self._adapted(), self._method()
        if not method.uploads:
            return
        before = _branch(model, method.uploads)
        method.train(self._training(model))
        assert not torch.equal(_branch(model, method.uploads), before)
        sent = pq_tensors(model, method.uploads) | lora_tensors(model, method.uploads)
        into = pq_tensors(model, method.receives) | lora_tensors(model, method.receives)
        assert {n: v.shape for n, v in sent.items()} == {n: v.shape for n, v in into.items()}
        other = LOCAL if method.receives == GLOBAL else GLOBAL
        kept = _branch(model, other)
        receive(model, {name: value.detach() + 0.1 for name, value in sent.items()}, method.receives)
        assert torch.equal(_branch(model, other), kept), "what comes in replaces no other branch"

    def test_it_answers_every_question(self) -> None:
        """With one finite number a choice."""
        dataset = asked()
        logits = self._method().logits(self._adapted(), dataset, dataset)
        assert len(logits) == len(dataset)
        assert bool(logits.isfinite().all())

    def _method(self) -> Method:
        return make_method(METHODS[self.name].settings.model_validate({"name": self.name, **self.own}))

    def _adapted(self) -> "PeftModel":
        dataset, n_blocks = asked(), int(METHODS[self.name].pq)
        model = attach(
            reader(), {"reader": "layers"}, 4, lambda m: dataset.vectors(m, torch.arange(8)), n_blocks=n_blocks
        )
        self._method().prepare(model)
        return model

    def _training(self, model: "PeftModel") -> LocalTraining:
        given = {"steps": 8, "batch": 8, "learning_rate": 2e-3, "method": {"name": self.name, **self.own}}
        return LocalTraining(model, asked(), MosaicSettings.model_validate(given), 7)


def _branch(model: "PeftModel", branch: str) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in learnt(model, branch)])
