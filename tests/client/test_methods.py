"""What each method trains, sends, takes in and answers with, on a tiny reader and made-up questions."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tessera.client.adapters.attach import attach, lora_tensors, pq_tensors, receive
from tessera.client.adapters.pq_lora import GLOBAL, LOCAL, GatedLinear, weigh
from tessera.client.methods import LocalTraining, Method, answer, make_method
from tessera.client.methods.base import Taught, learnt
from tessera.client.methods.feddpa import MOST, REFERENCES
from tessera.common.config.settings import MosaicSettings
from tessera.common.data.questions import divergence
from tessera.common.registry.methods import METHODS
from tessera.common.utils import counter_rng
from tessera.testing.methods import asked, draw, reader

FAST = {"name": "fedmosaic", "pq_learning_rate": 1e-2}
SHORT = MosaicSettings(steps=8, batch=8, learning_rate=2e-3, method=FAST)
every_method = pytest.mark.parametrize("name", METHODS)


def method_of(name: str, **settings: object) -> Method:
    return make_method(METHODS[name].settings.model_validate({"name": name, **settings}))


def adapted(name: str) -> PeftModel:
    dataset = asked()
    n_blocks = 1 if METHODS[name].pq else 0
    model = attach(reader(), {"reader": "layers"}, 4, lambda m: dataset.vectors(m, torch.arange(8)), n_blocks=n_blocks)
    method_of(name).prepare(model)
    return model


def local_training(model: PeftModel, training: MosaicSettings = SHORT, round: int = 1) -> LocalTraining:
    return LocalTraining(model, asked(), training, counter_rng.key("lesson", 0, "client", round))


def stir(model: PeftModel, branch: str, scale: float = 0.2) -> None:
    """Move what a branch learns, which is all that `receive` replaces."""
    tensors = pq_tensors(model, branch) | lora_tensors(model, branch)
    receive(model, {name: value + scale * draw(name + branch, *value.shape) for name, value in tensors.items()}, branch)


def copied(model: PeftModel, branch: str) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in learnt(model, branch)])


def gates(model: PeftModel) -> Tensor:
    return torch.stack([layer.lora_gate[LOCAL].detach() for layer in model.modules() if isinstance(layer, GatedLinear)])


def test_every_method_is_known_to_both_sides() -> None:
    for name, method in METHODS.items():
        assert (method_of(name).uploads is None) == (method.shares in ("nothing", "logits"))


@every_method
def test_a_device_answers_like_the_frozen_reader_before_it_learns_and_better_afterwards(name: str) -> None:
    model, method, dataset = adapted(name), method_of(name), asked()
    rows = torch.arange(len(dataset))
    before = method.logits(model, dataset, dataset)
    torch.testing.assert_close(before, dataset.logits(reader(), rows), rtol=0, atol=1e-4)
    method.train(local_training(model, MosaicSettings(steps=40, batch=16, learning_rate=2e-3, method=FAST)))
    after = method.logits(model, dataset, dataset)
    assert float(dataset.loss(after, rows)) < float(dataset.loss(before, rows)) - 0.02


@every_method
def test_all_methods_read_the_same_number_of_batches(name: str) -> None:
    model, forward, backward = adapted(name), list[int](), list[int]()

    def count(module: object, given: object, output: Tensor) -> None:
        forward.append(1)
        output.register_hook(lambda _: backward.append(1))  # type: ignore[no-untyped-call]

    model.get_base_model().register_forward_hook(count)
    method_of(name).train(local_training(model))
    assert (len(forward), len(backward)) == (SHORT.steps, SHORT.steps)


@pytest.mark.parametrize(
    ("name", "trained", "sent", "received"),
    [
        ("sft", {LOCAL}, None, GLOBAL),
        ("fedit", {LOCAL}, LOCAL, LOCAL),
        ("ditto", {LOCAL, GLOBAL}, GLOBAL, GLOBAL),
        ("fedsim", {LOCAL, GLOBAL}, GLOBAL, GLOBAL),
        ("feddpa", {LOCAL, GLOBAL}, GLOBAL, GLOBAL),
        ("feddat", {LOCAL, GLOBAL}, GLOBAL, GLOBAL),
        ("perada", {LOCAL, GLOBAL}, GLOBAL, GLOBAL),
        ("takfl", {LOCAL}, LOCAL, LOCAL),
        ("fedmkt", {LOCAL}, None, GLOBAL),
        ("pq", {LOCAL}, LOCAL, GLOBAL),
        ("fedmosaic", {LOCAL}, LOCAL, GLOBAL),
    ],
)
def test_what_is_trained_what_is_sent_and_where_the_merged_goes(
    name: str, trained: set[str], sent: str | None, received: str
) -> None:
    model, method = adapted(name), method_of(name)
    stir(model, GLOBAL)
    before = {branch: copied(model, branch) for branch in (LOCAL, GLOBAL)}
    method.train(local_training(model))
    assert {branch for branch, value in before.items() if not torch.equal(value, copied(model, branch))} == trained
    assert (method.uploads, method.receives) == (sent, received)
    gated = name in ("pq", "fedmosaic")  # elsewhere the gate never counts, and never moves
    assert bool((gates(model) != 0).all()) == gated
    assert bool((gates(model) == 0).all()) == (not gated)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fedit", True),
        ("ditto", False),
        ("fedsim", True),
        ("feddpa", True),
        ("feddat", True),
        ("perada", False),
        ("takfl", True),
        ("fedmosaic", True),
    ],
)
def test_what_the_server_merged_changes_the_answers_at_once_where_it_takes_part_in_them(
    name: str, changes: bool
) -> None:
    model, method, dataset = adapted(name), method_of(name), asked()
    before = method.logits(model, dataset, dataset)
    stir(model, method.receives)
    assert torch.allclose(method.logits(model, dataset, dataset), before, atol=1e-4) != changes
    alone = answer(model, dataset, [method.receives])
    assert not torch.allclose(alone, before, atol=1e-3)
    if name in ("fedit", "takfl"):
        torch.testing.assert_close(method.logits(model, dataset, dataset), alone)


@every_method
def test_a_round_can_be_repeated_and_the_next_one_draws_other_questions(name: str) -> None:
    def trained(round: int) -> Tensor:
        model = adapted(name)
        method_of(name).train(local_training(model, round=round))
        return torch.cat([copied(model, LOCAL), copied(model, GLOBAL), gates(model)])

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_a_batch_is_drawn_by_round_and_step_from_all_questions() -> None:
    model = adapted("sft")
    drawn = [local_training(model, round=round).rows(step) for round in (1, 2) for step in (0, 1)]
    assert len({tuple(rows.tolist()) for rows in drawn}) == 4
    many = torch.cat([local_training(model).rows(step) for step in range(200)])
    assert set(many.tolist()) == set(range(len(asked())))


def test_the_penalty_of_ditto_holds_the_personal_branch_to_the_average_that_came() -> None:
    def distance(proximity: float) -> float:
        model = adapted("ditto")
        stir(model, GLOBAL)
        average = pq_tensors(model, GLOBAL) | lora_tensors(model, GLOBAL)
        receive(model, average, LOCAL)
        came = copied(model, GLOBAL)
        training = MosaicSettings(steps=40, batch=8, learning_rate=2e-3)
        method_of("ditto", proximity=proximity).train(local_training(model, training))
        return float((copied(model, LOCAL) - came).norm())

    free, weak, strong = distance(0.0), distance(0.1), distance(1e6)
    assert strong < 0.1 * free
    assert strong < weak < free


def test_words_that_a_device_never_learnt_from_are_answered_by_what_others_know_alone() -> None:
    model, own, other = adapted("fedmosaic"), asked(), asked(12, "other")
    for branch in (LOCAL, GLOBAL):
        stir(model, branch)
    foreign = replace(other, questions=replace(other.questions, instructions=("whose is it",)))
    gated, shared = (answer(model, other, branches) for branches in ((LOCAL, GLOBAL), (GLOBAL,)))
    assert not torch.allclose(gated, shared, atol=1e-3)
    method = method_of("fedmosaic")
    assert torch.equal(method.logits(model, own, other), gated)
    assert torch.equal(method.logits(model, own, foreign), shared)
    assert torch.equal(method_of("fedmosaic", gate_by_instruction=False).logits(model, own, foreign), gated)
    two = replace(  # a task in words of its own, of which the device has no question yet
        own, questions=replace(own.questions, names=("more", "later"), instructions=("which has more", "whose is it"))
    )
    assert torch.equal(method.logits(model, two, foreign), shared)


def test_without_a_gate_and_without_p_and_q_all_shared_rounds_are_fedit() -> None:
    """The own branch learns, travels, begins anew and answers as FedIT's one branch does, bit for bit."""
    bare = {"gate": "none", "blocks": 0, "shared_rounds": 1, "gate_by_instruction": False}
    found = []
    for method in (method_of("fedit"), method_of("pq", **bare)):
        model, dataset, seen = adapted("fedit"), asked(), []
        for round in (1, 2):
            seen.append(method.train(local_training(model, round=round)))
            seen.append(method.logits(model, dataset, dataset))
            came = {name: value * 0.5 for name, value in lora_tensors(model, LOCAL).items()}
            assert LOCAL in method.begins_with(round / 2)
            for branch in method.begins_with(round / 2):
                receive(model, came, branch)
        found.append([torch.as_tensor(value) for value in seen])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_own_branch_begins_the_shared_rounds_from_what_came_down() -> None:
    method = method_of("fedmosaic", shared_rounds=0.4)
    assert [method.begins_with(round / 5) for round in (1, 2, 3)] == [(LOCAL, GLOBAL), (LOCAL, GLOBAL), (GLOBAL,)]
    assert method_of("fedmosaic", shared_rounds=0).begins_with(0.1) == (GLOBAL,)
    assert method_of("fedit").begins_with(0.1) == (LOCAL,)


def test_rates_fall_as_a_cosine_over_the_rounds_for_every_method() -> None:
    rates = [SHORT.rates(round, 4) for round in (1, 2, 3, 4)]
    assert rates == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    assert MosaicSettings(schedule="constant").rates(3, 4) == 1
    for name in METHODS:
        model = adapted(name)
        before = torch.cat([copied(model, LOCAL), copied(model, GLOBAL)])
        local = replace(local_training(model, MosaicSettings(steps=2, batch=8, learning_rate=1.0)), rates=1e-9)
        method_of(name).train(local)
        assert (torch.cat([copied(model, LOCAL), copied(model, GLOBAL)]) - before).abs().max() < 1e-7, name


def test_a_dropped_batch_is_learnt_as_if_there_were_no_other_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(name: str, **settings: object) -> Tensor:
        model = adapted("fedmosaic")
        stir(model, GLOBAL)
        method_of(name, **settings).train(local_training(model))
        return copied(model, LOCAL)

    always = trained("fedmosaic", branch_dropout=0.999999)
    assert torch.equal(always, trained("sft"))
    some = trained("fedmosaic", branch_dropout=0.5)
    assert not torch.allclose(some, always)
    assert not torch.allclose(some, trained("fedmosaic"))


def test_what_one_of_feddats_pair_knows_pulls_the_other_over_the_choices_there_are() -> None:
    known, learning = torch.tensor([[2.0, 0.0, -torch.inf]]), torch.zeros(1, 3)
    learning[0, 2] = -torch.inf
    chances = known.softmax(1)[0, :2]
    wanted = (chances * (2 * chances).log()).sum()  # from even chances of the two that are there
    torch.testing.assert_close(divergence(known, learning), wanted)
    learning.requires_grad_()
    divergence(known, learning).backward()  # type: ignore[no-untyped-call]
    assert learning.grad is not None
    assert learning.grad[0].sign().tolist() == [-1, 1, 0]


def test_fedsim_adds_both_branches_in_full() -> None:
    model = adapted("fedsim")
    for branch in (LOCAL, GLOBAL):
        stir(model, branch)
    layer = next(module for module in model.modules() if isinstance(module, GatedLinear))
    x = draw("x", 5, layer.in_features)
    added = sum((layer.get_delta_weight(branch) for branch in (LOCAL, GLOBAL)), layer.base_layer.weight)
    torch.testing.assert_close(layer(x), x @ added.T + layer.base_layer.bias, rtol=0, atol=1e-5)


def test_feddpa_mixes_for_each_question_by_its_likeness_to_the_devices_own() -> None:
    model, own, other = adapted("feddpa"), asked(), asked(12, "other")
    for branch in (LOCAL, GLOBAL):
        stir(model, branch)
    logits = method_of("feddpa").logits(model, own, other)

    bare, shares = reader(), []
    spread = torch.linspace(0, len(own) - 1, REFERENCES).long()
    known = own.vectors(bare, spread)
    for row in torch.arange(len(other)):
        vector = other.vectors(bare, row[None])[0]
        cosines = [torch.cosine_similarity(vector, one, dim=0) for one in known]
        shares.append(MOST * torch.stack(cosines).mean().clamp(min=0))
        weigh(model, {LOCAL: shares[-1], GLOBAL: 1 - shares[-1]})
        with torch.no_grad():
            alone = other.logits(model.get_base_model(), row[None])
        torch.testing.assert_close(logits[row], alone[0], rtol=0, atol=1e-4)
    assert 0 < min(shares) < max(shares) <= MOST


def test_perada_without_proximity_is_both_branches_trained_apart() -> None:
    model, apart = adapted("perada"), adapted("perada")
    stir(model, GLOBAL)
    stir(apart, GLOBAL)
    method_of("perada", proximity=0).train(local_training(model))
    plain = local_training(apart)
    first, second = plain.halves()
    plain.fit([GLOBAL], [GLOBAL], first)
    plain.fit([LOCAL], [LOCAL], second)
    for branch in (LOCAL, GLOBAL):
        assert torch.equal(copied(model, branch), copied(apart, branch))


def test_fedmkt_learns_from_the_public_answers_that_are_nearer_than_its_own() -> None:
    """One round by hand: which answers count, and both parts of the loss at every step."""
    model, twin, public = adapted("fedmkt"), adapted("fedmkt"), asked(60, "public")
    answers = 3 * draw("answers", 60, 2)
    training = replace(local_training(model), taught=Taught(public, answers))
    method_of("fedmkt", fine_tuning=0.6).train(training)

    own, right = answer(twin, public, [LOCAL]), public.questions.answers
    nearer = [row for row in range(60) if answers[row].softmax(0)[right[row]] > own[row].softmax(0)[right[row]]]
    assert 0 < len(nearer) < 60
    reader = twin.get_base_model()
    optimizer = torch.optim.AdamW(learnt(twin, LOCAL), SHORT.learning_rate, weight_decay=0.0)
    for step in range(SHORT.steps // 2):
        draws = counter_rng.uniform(counter_rng.key("public", training.key), torch.tensor(step), torch.arange(8))
        rows = torch.tensor([nearer[int(float(at) * len(nearer))] for at in draws])
        probabilities, said = answers[rows].softmax(1), public.logits(reader, rows).log_softmax(1)
        distilled = (probabilities * (probabilities.log() - said)).sum() / 8
        optimizer.zero_grad()
        (0.6 * training.dataset.objective(reader, training.rows(step)) + 0.4 * distilled).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(copied(model, LOCAL), copied(twin, LOCAL), rtol=0, atol=1e-5)


def test_fedmkt_learns_from_its_own_questions_where_no_answer_is_nearer() -> None:
    model, alone, public = adapted("fedmkt"), adapted("sft"), asked(60, "public")
    wrong = torch.zeros(60, 2).scatter(1, public.questions.answers[:, None], -50.0)
    method_of("fedmkt").train(replace(local_training(model), taught=Taught(public, wrong)))
    method_of("sft").train(local_training(alone))
    assert torch.equal(copied(model, LOCAL), copied(alone, LOCAL))
