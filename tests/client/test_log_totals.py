"""Losses over the whole catalogue without a table of it: they equal the same in tensors, and ordinary differentiation."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tessera.client import cohort
from tessera.client.cohort import Step
from tessera.client.histories import histories
from tessera.client.kernels import log_totals
from tessera.client.kernels.log_totals import LogTotals
from tessera.common.config.settings import LocalSettings
from tests.client.test_cohort import DIM, N_ITEMS, N_VIEWS, sent
from tests.support.catalogues import small_split

USERS, ITEMS, WIDTH = 7, 50, 6


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kept", [0, 200, 2**28])
@pytest.mark.parametrize("chunk", [1, 70, 2**21])
@pytest.mark.parametrize("cold", [None, slice(0, 20), slice(25, 31)])
def test_totals_and_gradients_are_those_of_the_table(
    kept: int, chunk: int, cold: slice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of one item, of ten, or all at once; with exponentials kept, kept in part, or computed again."""
    monkeypatch.setattr(log_totals, "CHUNK", chunk)
    monkeypatch.setattr(log_totals, "KEPT", kept)
    left, table, weights = draw(USERS, WIDTH), draw(ITEMS, WIDTH, seed=1), draw(USERS, seed=2)
    excluded = None
    if cold is not None:
        excluded = torch.zeros(ITEMS, dtype=torch.bool)
        excluded[cold] = True
    one, two = left.clone().requires_grad_(), table.clone().requires_grad_()
    scores = one @ two.T
    wanted = torch.logsumexp(scores if excluded is None else scores.masked_fill(excluded, -torch.inf), 1)
    by_left, by_table = torch.autograd.grad((weights * wanted).sum(), (one, two))
    found, own = LogTotals(left, table, excluded), left.clone().requires_grad_()
    values, into = found.attached(own), torch.ones_like(table)
    found.add_items(weights, into)
    torch.testing.assert_close(values, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad((weights * values).sum(), own)[0], by_left, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(into - 1, by_table, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e4, torch.inf, torch.nan])
def test_large_scores_do_not_overflow_and_faults_are_not_hidden(scale: float) -> None:
    table = draw(ITEMS, WIDTH)
    table[3] *= scale
    values = LogTotals(draw(USERS, WIDTH, seed=1), table, None).values
    assert bool(values.isfinite().all()) == (scale < torch.inf)


LOCALS: dict[str, dict[str, Any]] = {
    "softmax": {"backbone": "history", "loss": "softmax"},
    "softmax-head": {"backbone": "fedavg", "loss": "softmax"},
    "next": {"backbone": "history", "loss": {"name": "next", "next_item_samples": 3}, "recency": 1.0},
    "bce": {"backbone": "fedavg", "loss": "bce", "weighting": "examples"},
    "squares": {"backbone": "fedavg", "loss": "squares"},
    "cosine": {"backbone": "cosine", "loss": "softmax"},
}


@pytest.mark.parametrize("name", LOCALS)
def test_gradients_that_are_added_up_are_those_of_ordinary_differentiation(name: str) -> None:
    """Outside of `adding_up` the same operations are differentiated as they stand: that is the twin."""
    local = LocalSettings.model_validate({"history_mask": 0.3, **LOCALS[name]})
    tensors = sent() if local.backbone.name == "history" else {"views": sent()["views"]}
    split = small_split(n_users=9, n_items=N_ITEMS)
    people = histories(split).to(torch.device("cpu"), torch.float64)
    step = Step(tensors, people, local, round=1)
    state = cohort.start_state(split.users, local, tensors["views"], seed=1)
    parameters = {key: value + 0.1 * torch.randn_like(value) for key, value in state.parameters.items()}
    losses, own, total = step.gradients(parameters, salt=5)
    private, received = cohort._leaves(parameters), cohort._leaves(step.sent)
    wanted = step._losses(private, received, salt=5)
    found = torch.autograd.grad((step.weight * wanted).sum(), [*private.values(), *received.values()])
    torch.testing.assert_close(losses, wanted.detach(), rtol=1e-10, atol=1e-10)
    for (key, one), gradient in zip((own | total).items(), found, strict=True):
        weight = step.weight.view(-1, *[1] * (one.ndim - 1)) if key in own else 1
        torch.testing.assert_close(one * weight, gradient, rtol=1e-9, atol=1e-10, msg=key)


class Sizes(TorchDispatchMode):
    """Notes the sizes of all new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found += [result.numel()] if isinstance(result, torch.Tensor) else []
        return result


@pytest.mark.parametrize("name", ["softmax", "next"])
def test_no_table_of_people_and_items_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_totals, "CHUNK", 2**12)
    local = LocalSettings.model_validate({"history_mask": 0.3, **LOCALS[name]})
    n_users, n_items = 300, 400
    generator = torch.Generator().manual_seed(0)
    tensors = {"views": torch.randn(N_VIEWS, n_items, DIM, generator=generator), "history": torch.randn(n_items, DIM)}
    split = small_split(n_users=n_users, n_items=n_items)
    state, people = cohort.start_state(split.users, local, tensors["views"], seed=1), histories(split)
    with Sizes() as sizes:
        cohort.train(state, tensors, people, local, seed=1, round=1)
    assert max(sizes.found) < n_users * n_items
