"""Signatures: alike for like tasks, the same coordinates for all, and no more than was meant to leave."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from tessera.client.adapters.signature import Signature, last_layer_gradient
from tessera.common.protocol.signature_mask import kept_coordinates
from tessera.common.registry.methods import SignatureSettings

USUAL = SignatureSettings()


def gradients(task: Tensor, seed: int, n_batches: int = 4) -> Tensor:
    """Last-layer gradients [n_batches, size] of one frozen model on batches of a linear task."""
    frozen = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(9)
    for parameter in frozen.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    before = [parameter.clone() for parameter in frozen.parameters()]
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n_batches):
        x = torch.randn(64, 8, generator=generator)
        rows.append(last_layer_gradient(cross_entropy(frozen(x), (x @ task).argmax(1)), list(frozen[2].parameters())))
    assert all(torch.equal(old, new) for old, new in zip(before, frozen.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in frozen.parameters())
    return torch.stack(rows)


def test_clients_of_one_task_are_more_alike_than_clients_of_two() -> None:
    generator = torch.Generator().manual_seed(0)
    task, other = torch.randn(8, 3, generator=generator), torch.randn(8, 3, generator=generator)
    mask = kept_coordinates(16 * 3 + 3, seed=4, kept=USUAL.kept)
    sent = [
        Signature(USUAL).after(gradients(which, seed)).sanitised(mask, secret=seed, round=1)
        for which, seed in ((task, 1), (task, 2), (other, 3))
    ]
    assert cosine_similarity(sent[0], sent[1], dim=0) > 0.8
    assert cosine_similarity(sent[0], sent[2], dim=0) < cosine_similarity(sent[0], sent[1], dim=0) - 0.2


def test_the_first_round_counts_in_full_and_later_ones_decay() -> None:
    one = Signature(USUAL).after(torch.tensor([[1.0, 3.0], [3.0, 5.0]]))
    assert one.decayed is not None
    assert one.decayed.tolist() == [2.0, 4.0]
    two = one.after(torch.tensor([[0.0, 0.0]]))
    assert two.decayed is not None
    assert two.decayed.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="before the first round"):
        Signature(USUAL).sanitised(torch.tensor([0]), 0, 0)


def test_how_much_is_bounded_noised_and_sent_is_a_setting() -> None:
    settings = SignatureSettings(limit=0, noise=0, kept=0.1, decay=1.0)
    large = Signature(settings).after(torch.ones(1, 100)).after(torch.full((1, 100), 10.0))
    mask = kept_coordinates(100, 1, settings.kept)
    assert large.sanitised(mask, secret=1, round=1).tolist() == [10.0] * 10


def test_what_is_sent_is_bounded_noised_and_a_part() -> None:
    large = Signature(USUAL, torch.full((1000,), 10.0))
    mask = kept_coordinates(1000, 1, USUAL.kept)
    sent = large.sanitised(mask, secret=1, round=1)
    assert len(sent) == len(mask) == round(USUAL.kept * 1000)
    assert sent.norm() < USUAL.limit
    exact = torch.full((1000,), USUAL.limit / 1000**0.5)[mask]
    assert 0.5e-4 < (sent - exact).std() < 2e-4
    assert torch.equal(sent, large.sanitised(mask, secret=1, round=1))  # a resumed run sends the same
    assert not torch.equal(sent, large.sanitised(mask, secret=1, round=2))
    assert not torch.equal(sent, large.sanitised(mask, secret=2, round=1))
    small = Signature(USUAL, torch.full((1000,), 1e-3))
    assert (small.sanitised(mask, 1, 1) - 1e-3).abs().max() < 1e-3  # what is short is not stretched


def test_the_mask_is_the_runs() -> None:
    assert torch.equal(kept_coordinates(500, 1, 0.4), kept_coordinates(500, 1, 0.4))
    assert not torch.equal(kept_coordinates(500, 1, 0.4), kept_coordinates(500, 2, 0.4))
    assert kept_coordinates(500, 1, 0.4).unique().numel() == 200
    assert kept_coordinates(1, 0, 0.4).tolist() == [0]


def test_a_signature_is_float32_whatever_the_model_is_in() -> None:
    """Language models are kept in bfloat16, which no message carries."""
    layer = torch.nn.Linear(4, 3).bfloat16()
    gradient = last_layer_gradient(layer(torch.ones(2, 4).bfloat16()).float().sum(), list(layer.parameters()))
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, torch.full((15,), 2.0))
