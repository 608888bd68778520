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
from tessera.client.aspects.facets import BlockSums, facet_sum
from tessera.client.histories import Histories, histories
from tessera.common.config.settings import EvaluationSettings
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split
from tessera.common.data.targets import Targets
from tessera.common.datasets import aspects_shop
from tessera.common.datasets.aspects_shop import EVENTS, FACTORS, KINDS, N_ITEMS, N_PEOPLE
from tessera.common.protocol.messages import FacetStep
from tessera.server.views.facets import find_facets, numbered, whitened

RIDGE, ICA_ROUNDS, NODES = 1.0, 30, 20
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


def find_blocks(devices: list[Histories], white: Tensor, blocks: int, seed: int) -> Tensor:
    """A rotation [dim, dim] whose blocks of columns are sides that people go by, from sums over devices alone."""

    def ask(step: FacetStep, table: Tensor) -> tuple[Tensor, float]:
        numbers = numbered(table.shape[1], blocks)
        found = torch.stack([facet_sum(device, table, step, numbers) for device in devices]).sum(0)
        return found, float(sum(map(len, devices)))

    return find_facets(ask, white, blocks, ICA_ROUNDS, seed)


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


def purity(groups: Tensor, kinds: Tensor) -> float:
    """Share of people who are of the most frequent kind in their group."""
    return sum(float(torch.bincount(kinds[groups == one]).max()) for one in groups.unique()) / len(groups)


def rows(world: World, seed: int) -> dict[str, dict[str, float]]:
    """Figures of each way, by its name."""
    blocks = world.kinds
    into, offset = whitened(world.items, world.items.shape[1])
    white = world.items @ into + offset
    known = histories(world.split).to(torch.device("cpu"), white.dtype)
    dealt = np.array_split(np.random.default_rng([seed, 18]).permutation(len(known)), NODES)
    devices = [histories(world.split.take(part)).to(torch.device("cpu"), white.dtype) for part in dealt]
    found = white @ find_blocks(devices, white, blocks, seed)
    true = world.items @ world.rotation
    alike, kinds = BlockSums(known, found, numbered(found.shape[1], blocks)), world.shares.argmax(1)
    own = alike.cohesion()
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
        "gate, James-Stein": (found, alike.shrinkage(), own.argmax(1)),
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
