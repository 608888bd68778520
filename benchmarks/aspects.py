"""python -m tessera.benchmarks.aspects [--kinds 4] [--factors 6] [--people 600] [--mixed] [--seeds 0 1 2]

Finds what people go by in a world where it is known: kinds of people, of whom each goes by one side of the items.

The world is that of the aspects shop (`tessera data aspects-shop`): items have several sides, and clustering people's mean
tastes cannot find who goes by which. How alike the items of a history are in a subspace can tell them apart (cohesion, see
docs/cohesion.md), and the subspaces are found from sums over devices. Nothing is trained, and no round of the product is run.
Prints purity, HR@50 and NDCG@50 on test for each way to weigh the subspaces, and one line of JSON.
"""

import argparse
import json
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tessera.benchmarks.baselines.base import Baseline
from tessera.benchmarks.baselines.group_popularity import lloyd, nearest
from tessera.benchmarks.baselines.selection import measure
from tessera.client.histories import Histories, histories
from tessera.common.config.settings import EvaluationSettings
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split
from tessera.common.data.targets import Targets
from tessera.common.datasets import aspects_shop
from tessera.common.datasets.aspects_shop import EVENTS, FACTORS, KINDS, N_ITEMS, N_PEOPLE

RIDGE, ICA_ROUNDS, ROUNDS, NODES = 1.0, 30, 10, 20
NOTHING = Catalogue((), (), (), (), {})


@dataclass(frozen=True)
class World:
    """People's events; items as they are public, [n_items, dim]; the rotation that nobody knows [dim, dim], whose columns are
    the kinds' side by side; and how far each person goes by each kind, [n_users, kinds]."""

    split: Split
    items: Tensor
    rotation: Tensor
    shares: Tensor

    @property
    def kinds(self) -> int:
        """How many there are."""
        return self.shares.shape[1]


def draw_world(
    seed: int, kinds: int = KINDS, factors: int = FACTORS, people: int = N_PEOPLE, mixed: bool = False
) -> World:
    """Draw an aspects shop; the last two events are for validation and test."""
    drawn = aspects_shop.draw_world(seed, kinds, factors, people, mixed)
    split = Split(
        users=tuple(f"person-{n}" for n in range(people)),
        offsets=(EVENTS - 2) * np.arange(people + 1),
        train_items=drawn.bought[:, :-2].reshape(-1),
        validation=Targets.single(drawn.bought[:, -2].tolist()),
        test=Targets.single(drawn.bought[:, -1].tolist()),
        n_items=N_ITEMS,
    )
    return World(split, *(torch.from_numpy(part) for part in (drawn.items, drawn.rotation, drawn.shares)))


def whitened(items: Tensor) -> Tensor:
    """Items around their mean, with covariance I."""
    around = items - items.mean(0)
    values, vectors = torch.linalg.eigh(around.T @ around / len(items))
    return around @ vectors * values.rsqrt()


def block_cohesion(known: Histories, white: Tensor, blocks: int) -> Tensor:
    """Likeness of people's items in each block of the columns, [n_users, blocks]: by chance its mean is 0, its variance 1.

    e_uk = (|S_k|^2 - sum_i |z_ik|^2) / sqrt(2 L (L - 1) d_k) for L events z_i [d] with sum S, and d_k columns.
    """
    parts = white.view(len(white), blocks, -1)
    alike = known.total(white).view(len(known), blocks, -1).square().sum(2) - known.total(parts.square().sum(2))
    lengths = known.lengths().clamp(min=2)
    return alike / (2 * lengths * (lengths - 1) * parts.shape[2]).sqrt()[:, None]


def refinement_sum(known: Histories, white: Tensor, rotation: Tensor, blocks: int) -> Tensor:
    """What a device adds: sum_u [r_uk M_u Q_k]_k [dim, dim], with r_u = softmax e_u and M_u = (S S' - sum_i x_i x_i') /
    sqrt(2 L (L - 1))."""
    found = block_cohesion(known, white @ rotation, blocks)
    lengths = known.lengths().clamp(min=2)
    counts = found.softmax(1) / (2 * lengths * (lengths - 1)).sqrt()[:, None]
    totals, rows, parts = known.total(white), white[known.items], rotation.chunk(blocks, 1)
    products = [
        totals.T @ (own[:, None] * (totals @ part)) - rows.T @ (own[known.owners, None] * (rows @ part))
        for own, part in zip(counts.T, parts, strict=True)
    ]
    return torch.cat(products, 1)


def find_blocks(devices: list[Histories], white: Tensor, blocks: int, seed: int) -> Tensor:
    """A rotation [dim, dim] whose blocks of columns are sides that people go by, from sums over devices alone.

    Kinds differ in people's fourth moments. So directions start as independent components of people's scaled sums S / sqrt(L)
    (FastICA, symmetric, cubic; Hyvarinen 1999), are put together by how their squares vary together, and then turned so that
    people's items are as alike as can be in one block (`refinement_sum`). Each step is one sum of a matrix [dim, dim].
    """
    scaled = [device.total(white) / device.lengths().clamp(min=1).sqrt()[:, None] for device in devices]
    people = sum(map(len, devices))
    values, vectors = torch.linalg.eigh(torch.stack([one.T @ one for one in scaled]).sum(0) / people)
    sphered = [one @ (vectors * values.rsqrt()) @ vectors.T for one in scaled]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=white.dtype)).Q
    for _ in range(ICA_ROUNDS):
        total = torch.stack([one.T @ (one @ rotation) ** 3 for one in sphered]).sum(0)
        rotation = polar(total / people - 3 * rotation)
    squares = [(one @ rotation) ** 2 - 1 for one in sphered]
    rotation = rotation[:, put_together(torch.stack([one.T @ one for one in squares]).sum(0), blocks)]
    for _ in range(ROUNDS):
        rotation = polar(torch.stack([refinement_sum(device, white, rotation, blocks) for device in devices]).sum(0))
    return rotation


def polar(matrix: Tensor) -> Tensor:
    """The nearest rotation."""
    left, _, right = torch.linalg.svd(matrix)
    return left @ right


def put_together(together: Tensor, blocks: int) -> list[int]:
    """Directions in an order in which those of a block stand side by side, blocks of one size: each begins with whichever of
    the rest varies most with another, and takes what varies most with it."""
    left, order, size = list(range(len(together))), list[int](), len(together) // blocks
    apart = together - torch.diag(together.diag())
    for _ in range(blocks):
        block = [max(left, key=lambda one: float(apart[one, left].max()))]
        left.remove(block[0])
        while len(block) < size:
            block.append(max(left, key=lambda one: float(apart[block, one].mean())))
            left.remove(block[-1])
        order += block
    return order


@dataclass
class Gated(Baseline):
    """score(u, i) = sum_k g_uk <S_uk, z_ik> / (L + ridge) for gates g [n_users, blocks] of blocks of the columns z of items."""

    items: Tensor = field(default_factory=lambda: torch.zeros(0))
    gates: Tensor = field(default_factory=lambda: torch.zeros(0))

    def fit(self, split: Split, catalogue: Catalogue, seed: int) -> None:
        """Nothing is learnt."""

    def scores(self, known: Histories) -> Tensor:
        """Score the catalogue, [n_users, n_items]."""
        width = self.items.shape[1] // self.gates.shape[1]
        query = known.total(self.items) / (known.lengths() + RIDGE)[:, None]
        return (query * self.gates.repeat_interleave(width, dim=1)) @ self.items.T


def james_stein(known: Histories, white: Tensor, blocks: int) -> Tensor:
    """Gates (1 - L d_k / |S_k|^2)+, [n_users, blocks], without any constant to choose."""
    lengths, width = known.lengths()[:, None], white.shape[1] // blocks
    squares = known.total(white).view(len(known), blocks, -1).square().sum(2)
    return (1 - lengths * width / squares).clamp(min=0)


def purity(groups: Tensor, kinds: Tensor) -> float:
    """Share of people who are of the most frequent kind in their group."""
    return sum(float(torch.bincount(kinds[groups == one]).max()) for one in groups.unique()) / len(groups)


def rows(world: World, seed: int) -> dict[str, dict[str, float]]:
    """Figures of each way, by its name."""
    white, blocks = whitened(world.items), world.kinds
    known = histories(world.split).to(torch.device("cpu"), white.dtype)
    dealt = np.array_split(np.random.default_rng([seed, 18]).permutation(len(known)), NODES)
    devices = [histories(world.split.take(part)).to(torch.device("cpu"), white.dtype) for part in dealt]
    found = white @ find_blocks(devices, white, blocks, seed)
    true = world.items @ world.rotation
    own, kinds = block_cohesion(known, found, blocks), world.shares.argmax(1)
    tastes = torch.nn.functional.normalize(known.total(white), dim=1)
    clusters = nearest(tastes, lloyd(tastes, blocks, seed))
    drawn = torch.from_numpy(np.random.default_rng([seed, 19]).integers(blocks, size=len(known)))
    ways = {
        "all dimensions alike": (found, torch.ones_like(own), None),
        "k-means on tastes": (found, as_groups(own, clusters), clusters),
        "random groups": (found, as_groups(own, drawn), drawn),
        "largest cohesion": (found, one_hot(own.argmax(1), blocks), own.argmax(1)),
        "gate, softmax .5": (found, blocks * (0.5 * own).softmax(1), own.argmax(1)),
        "gate, softmax .1": (found, blocks * (0.1 * own).softmax(1), own.argmax(1)),
        "gate, James-Stein": (found, james_stein(known, found, blocks), own.argmax(1)),
        "oracle groups, found blocks": (found, as_groups(own, kinds), kinds),
        "oracle: the true kind's side": (true, one_hot(kinds, blocks), kinds),
        "oracle: the true shares": (true, blocks * world.shares, kinds),
    }
    figures = {}
    for name, (items, gates, groups) in ways.items():
        gated = Gated(items=items.float(), gates=gates.float())  # histories come to be evaluated in float32
        reached = measure(gated, world.split, EvaluationSettings(ks=(50,)))
        figures[name] = {key: 100 * reached[f"test/all/{key}"] for key in ("hr@50", "ndcg@50")}
        if groups is not None:
            figures[name]["purity"] = purity(groups, kinds)
    return figures


def as_groups(own: Tensor, groups: Tensor) -> Tensor:
    """The softmax gate by the mean cohesion of each group in place of each person's, [n_users, blocks]."""
    blocks = own.shape[1]
    total = torch.zeros(blocks, blocks).to(own).index_add(0, groups, own)
    means = total / torch.bincount(groups, minlength=blocks).clamp(min=1)[:, None]
    return blocks * (0.5 * means).softmax(1)[groups]


def one_hot(groups: Tensor, blocks: int) -> Tensor:
    """Gates that open one block, [n_users, blocks]."""
    return blocks * torch.nn.functional.one_hot(groups, blocks).double()


def main() -> None:
    """Draw worlds, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", type=int, default=KINDS)
    parser.add_argument("--factors", type=int, default=FACTORS)
    parser.add_argument("--people", type=int, default=N_PEOPLE)
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        seed: rows(draw_world(seed, given.kinds, given.factors, given.people, given.mixed), seed)
        for seed in given.seeds
    }
    print(f"{'purity, HR@50 / NDCG@50 in %':32}" + "".join(f"{f'seed {seed}':>22}" for seed in found))
    for name in next(iter(found.values())):
        print(f"{name:32}" + "".join(f"{_written(figures[name]):>22}" for figures in found.values()))
    print(json.dumps({"settings": vars(given), "found": found}))


def _written(figures: dict[str, float]) -> str:
    known = f"{figures['purity']:.2f}  " if "purity" in figures else ""
    return f"{known}{figures['hr@50']:5.2f} / {figures['ndcg@50']:5.2f}"


if __name__ == "__main__":
    main()
