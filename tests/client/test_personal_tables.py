"""FedRAP's two terms, written out by hand, are what automatic differentiation makes of their formula."""

import pytest
import torch

from tessera.client.kernels.personal_tables import size_and_distance


@pytest.mark.parametrize(("size", "distance"), [(0.3, 0.7), (0.0, 1.0), (1.0, 0.0)])
def test_values_and_gradients_are_those_of_the_formula(size: float, distance: float) -> None:
    draws = torch.Generator().manual_seed(0)
    tables = torch.randn(2, 3, 5, 4, generator=draws, dtype=torch.float64)
    tables[1, 0, 0] = 0  # where |c| has no slope, autograd's is 0 too
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    found, wanted = [], []
    for written_out in (False, True):
        own, common = (table.clone().requires_grad_() for table in tables)
        if written_out:
            squared = (own - common) ** 2
            value = size * common.abs().mean((1, 2)) - distance * (squared / (1 + squared)).mean((1, 2))
        else:
            value = size_and_distance(own, common, size, distance)
        (wanted if written_out else found).extend(
            [value.detach(), *torch.autograd.grad((weight * value).sum(), (own, common))]
        )
    for mine, twin in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-12, atol=1e-14)
