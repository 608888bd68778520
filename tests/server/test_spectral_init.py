"""Singular vectors by sums alone, and what they say of items that nobody has."""

import torch

from tessera.server.views.spectral_init import leading_vectors


def interactions() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    table = (torch.rand(60, 40, generator=generator) < 0.3).float()
    table[:, [0, 3, 17, 39]] = 0  # nobody has these, two of them where rounding errors of a QR would be
    return table / table.sum(1, keepdim=True).clamp(min=1) ** 0.25


def test_the_leading_vectors_are_those_of_the_singular_value_decomposition() -> None:
    table = interactions()
    vectors, values = leading_vectors(lambda basis: table.T @ (table @ basis), 40, 8, rounds=30, seed=1)
    _, expected, right = torch.linalg.svd(table, full_matrices=False)
    torch.testing.assert_close(values, expected[:8], rtol=1e-4, atol=1e-4)
    overlap = (vectors.T @ right[:8].T).abs()
    torch.testing.assert_close(overlap, torch.eye(8), rtol=0, atol=2e-2)


def test_items_that_nobody_has_are_exactly_zero() -> None:
    table = interactions()
    for rounds in (1, 2, 20):
        vectors, _ = leading_vectors(lambda basis: table.T @ (table @ basis), 40, 24, rounds=rounds, seed=1)
        assert (~vectors.any(1)).nonzero().flatten().tolist() == [0, 3, 17, 39]
