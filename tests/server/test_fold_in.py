"""New items are placed by who has them: as written out person by person, and as people who have both would have it."""

import numpy as np
import torch

from tessera.server.views.fold_in import RIDGE, fold_in, spanned


def interactions(n_users: int = 80, n_items: int = 30) -> torch.Tensor:
    table = (torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(3)) < 0.3).double()
    table[:, 29] = table[:, 4]  # whoever has the one has the other
    table[:, 28] = 0
    return table


def by_person(histories: torch.Tensor, learnt: torch.Tensor, n_old: int) -> np.ndarray:
    """What `fold_in` says in loops: the sum over people, the directions one by one, each number by the normal equations."""
    n_items = len(learnt)
    basis = np.linalg.qr(learnt.numpy())[0]
    product = np.zeros_like(basis)
    for person in histories.numpy():
        length = person.sum()
        place = sum(person[item] / length**0.25 * basis[item] for item in range(n_items))
        for item in range(n_items):
            product[item] += person[item] / length**0.25 * place
    values, rotation = np.linalg.eigh(basis.T @ product)
    shown = np.stack([product @ rotation[:, at] / values[at] for at in range(len(values))], 1) * n_items**0.5
    found = np.zeros_like(learnt.numpy())
    for column in range(learnt.shape[1]):
        left = RIDGE * n_old * np.eye(shown.shape[1])
        right = np.zeros(shown.shape[1])
        for item in range(n_old):
            left += np.outer(shown[item], shown[item])
            right += shown[item] * float(learnt[item, column])
        found[:, column] = shown @ np.linalg.solve(left, right)
    return found


def test_new_rows_are_those_of_a_ridge_regression_on_a_sum_over_people() -> None:
    histories, n_old = interactions(), 24
    learnt = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).double()
    scaled = histories / histories.sum(1, keepdim=True) ** 0.25
    basis = spanned(learnt)
    product = scaled.T @ (scaled @ basis)
    found = fold_in({"history": learnt}, basis, product, torch.arange(30) < n_old)["history"]
    torch.testing.assert_close(found, torch.from_numpy(by_person(histories, learnt, n_old)), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[29], found[4])
    assert not found[28].any()
    assert (found[:n_old] - learnt[:n_old]).square().sum() < learnt[:n_old].square().sum()


def test_a_table_without_full_rank_is_spanned_by_as_many_directions_as_it_has() -> None:
    table = torch.randn(20, 5)
    table[:, 3:] = 0
    basis = spanned(table)
    assert basis.shape == (20, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(basis @ (basis.T @ table), table)
