"""Finds a good start for the item embeddings from sums over people alone: the leading singular vectors of the interactions.

X [n_users, n_items] has the rows r_u / |history_u|^(1/4). A round asks for X^T X B = sum_u x_u (x_u^T B), a sum over users
like any update, so no history leaves a device; between rounds the server makes B orthonormal again (randomised subspace
iteration; Halko, Martinsson & Tropp 2011).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tessera.common.protocol.messages import basis_columns

NOTHING = 1e-3
"""Singular values below this share of the largest are noise; their vectors are returned as zeros."""


def leading_vectors(
    product: Callable[[Tensor], Tensor], n_items: int, rank: int, rounds: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Find right singular vectors V [n_items, rank] and singular values [rank], largest first, of X from B -> X^T X B.

    `product` is asked `rounds` times. `rank` may not exceed n_items. Items that nobody has get rows of exact zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n_items, basis_columns(rank, n_items), generator=generator)).Q
    for _ in range(rounds - 1):
        basis = torch.linalg.qr(product(basis)).Q
    image = product(basis)
    values, rotation = torch.linalg.eigh(basis.T @ image)
    order = values.argsort(descending=True)[:rank]
    vectors, singular = basis @ rotation[:, order], values[order].clamp(min=0).sqrt()
    # A vector's sign is anybody's: the largest entry is made positive, so that the order of a sum decides nothing.
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    # Who asks which items nobody has looks for rows of zeros, where QR leaves rounding errors.
    return vectors * (singular > NOTHING * singular[0]) * image.any(1, keepdim=True), singular
