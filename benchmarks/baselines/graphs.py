"""Builds the sparse graphs that embeddings are propagated over: users with items, and items with similar items."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tessera.client.histories import Histories
from tessera.common.data.catalogue import Features

BLOCK = 2048


class Graph:
    """A fixed sparse matrix [n_rows, n_columns]; `graph @ table` [n_columns, width] has a gradient for the table only.

    The transpose is kept beside it, because CSR times dense is three times faster than what autograd would do.
    """

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        self.forward = _csr(rows, columns, values, shape)
        self.backward = _csr(columns, rows, values, (shape[1], shape[0]))

    def __matmul__(self, table: Tensor) -> Tensor:
        """Multiply, [n_rows, width]."""
        product: Tensor = _Product.apply(table, self)
        return product


class _Product(torch.autograd.Function):
    """y = A x, dx = A^T dy."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, table: Tensor, graph: Graph) -> Tensor:
        context.graph = graph  # type: ignore[attr-defined]
        return graph.forward @ table

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.graph.backward @ gradients[0], None  # type: ignore[attr-defined]


def user_item_graph(users: Tensor, items: Tensor, n_users: int, n_items: int) -> Graph:
    """R~ [n_users, n_items] with 1 / sqrt(|N_u| |N_i|) for each edge (users[e], items[e])."""
    return Graph(users, items, edge_values(users, items), (n_users, n_items))


def bipartite_graph(users: Tensor, items: Tensor, n_users: int, n_items: int) -> Graph:
    """D^-1/2 A D^-1/2 with A = [[0, R], [R^T, 0]], [n_users + n_items, n_users + n_items]: users first, then items."""
    rows, columns = torch.cat([users, items + n_users]), torch.cat([items + n_users, users])
    n_nodes = n_users + n_items
    return Graph(rows, columns, edge_values(users, items).repeat(2), (n_nodes, n_nodes))


def edge_values(users: Tensor, items: Tensor) -> Tensor:
    """1 / sqrt(|N_u| |N_i|) for each edge, [n_edges]; degrees are counted in these edges."""
    degrees = [ends.bincount()[ends].float() for ends in (users, items)]
    return (degrees[0] * degrees[1]).rsqrt()


def histories_graph(people: Histories) -> Graph:
    """The normalised bipartite graph of everybody's training items."""
    return bipartite_graph(people.owners, people.items, len(people), people.n_items)


def item_graph(features: Features, neighbours: int, weighted: bool) -> Graph:
    """The `neighbours` items of highest cosine for each item, itself among them, normalised by D^-1/2 S D^-1/2; frozen.

    `weighted` keeps the (positive) cosines as weights (LATTICE, MGCN), otherwise edges weigh the same (FREEDOM, PGL). D holds
    the row sums of the directed S. An item without the modality has no edges: its imputed mean resembles nothing.
    Zhang et al., Mining latent structures for multimedia recommendation (LATTICE), MM 2021, Eq. 1-4; Zhou & Shen, A tale of
    two graphs (FREEDOM), MM 2023, Eq. 1-3.
    """
    rows, columns, values = nearest(torch.from_numpy(features.standardised()), features, neighbours)
    if not weighted:
        values = torch.ones_like(values)
    n_items = len(features.values)
    return Graph(rows, columns, normalised(rows, columns, values, n_items), (n_items, n_items))


def nearest(table: Tensor, features: Features, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Edges from each item that has the modality to the `neighbours` such items of highest cosine in `table` [n_items, width]:
    their ends, [n_edges] each, and their cosines, at least 0."""
    table = normalize(table, dim=1)
    present = torch.from_numpy(features.present).nonzero()[:, 0]
    table, neighbours = table[present], min(neighbours, len(present))
    best = [(block @ table.T).topk(neighbours, dim=1) for block in table.split(BLOCK)]
    values = torch.cat([top.values for top in best]).clamp(min=0).flatten()
    columns = present[torch.cat([top.indices for top in best]).flatten()]
    return present.repeat_interleave(neighbours), columns, values


def normalised(rows: Tensor, columns: Tensor, values: Tensor, n_items: int) -> Tensor:
    """D^-1/2 S D^-1/2 of a graph's edges, [n_edges], with D the row sums of S."""
    scale = torch.zeros(n_items).index_add(0, rows, values).clamp(min=1e-7).rsqrt()
    return scale[rows] * values * scale[columns]


def weighted_sum(graphs: Sequence[Graph], weights: Sequence[float]) -> Graph:
    """Add up graphs of one shape, each times its weight."""
    parts = [weight * graph.forward.to_sparse_coo() for graph, weight in zip(graphs, weights, strict=True)]
    total = torch.stack(parts).sum(0).coalesce()
    rows, columns = total.indices()
    return Graph(rows, columns, total.values(), (total.shape[0], total.shape[1]))


def light_gcn(graph: Graph, table: Tensor, layers: int) -> Tensor:
    """Mean of the table and its 1 to `layers` hops (He et al., LightGCN, SIGIR 2020, Eq. 3-5), [n_nodes, width]."""
    total = table
    for _ in range(layers):
        table = graph @ table
        total = total + table
    return total / (layers + 1)


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
        triples = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape)
        return triples.coalesce().to_sparse_csr()
