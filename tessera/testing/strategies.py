"""What every strategy must fulfil."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tessera.client import cohort
from tessera.client.histories import histories
from tessera.common.config.loading import parse_settings
from tessera.common.config.settings import Settings
from tessera.common.data.interactions import Split
from tessera.common.errors import RoundAbandoned, RunError
from tessera.common.protocol.messages import VIEWS
from tessera.common.protocol.parts import TensorSums
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update, check_gradients, pack_update, unpack_update
from tessera.common.registry.registry import resolve
from tessera.common.registry.strategies import STRATEGIES
from tessera.server.strategies import Strategy, make_strategy
from tessera.testing.data import small_catalogue, small_split

N_USERS, N_ITEMS = 8, 30
STRANGE = TensorSums("strange", "the strange {!r}")
"""A part that no strategy takes."""


class StrategyContract:
    """Inherit it, and name a strategy of the registry; `changes` are settings of the run beside it.

    One that needs more than a catalogue, or that takes other updates than gradients, also says how it is made (`make`), what
    two devices answer (`updates`), and who they are (`clients`).
    """

    name: str
    changes: ClassVar[Mapping[str, Any]] = {}
    clients: tuple[str | None, ...] = (None,)

    def make(self) -> Strategy:
        """A new strategy, always the same."""
        return make_strategy(self.settings(), small_catalogue(N_ITEMS), Path("there is no dataset"))

    def settings(self) -> Settings:
        """Settings of a small run."""
        # Adam's first steps are all of one size, however small the gradient, and so would show how sums are rounded.
        small = {"views": {"dim": 8, "id_dim": 8}, "wire": {"views": "float32"}, "server": {"optimizer": "sgd"}}
        read = {group: value for group, value in small.items() if group in STRATEGIES[self.name].groups}
        given = {"name": "contract", "data": {"folder": "none"}, "strategy": self.name, **read, **self.changes}
        return parse_settings(given, "the contract of a strategy")

    def updates(self, strategy: Strategy) -> tuple[Update, Update]:
        """What two devices with different people answer to what the strategy broadcasts to them now."""
        split = small_split(N_USERS, N_ITEMS)
        return self._answer(strategy, split, range(3)), self._answer(strategy, split, range(3, N_USERS))

    def whole(self, strategy: Strategy) -> Update:
        """What one device with the people of both answers; asked only where the strategy says that it learns from a sum."""
        return self._answer(strategy, small_split(N_USERS, N_ITEMS), range(N_USERS))

    def test_a_broadcast_stays_the_same_until_something_is_learnt(self) -> None:
        """Nodes that hold it are sent only its name."""
        strategy = self._taught()
        before = self._broadcasts(strategy)
        assert self._broadcasts(strategy) == before
        _ = strategy.report(), strategy.state()
        assert self._broadcasts(strategy) == before
        first, second = self.updates(strategy)
        assert self._broadcasts(strategy) == before
        strategy.aggregate(first + second)
        assert self._broadcasts(strategy) != before

    def test_its_state_comes_back(self) -> None:
        """Also into a strategy that has learnt something else."""
        strategy, other = self._taught(), self._taught(rounds=2)
        other.restore(strategy.state())
        _assert_same(other.state(), strategy.state())
        assert self._broadcasts(other) == self._broadcasts(strategy)

    def test_the_order_of_devices_changes_nothing(self) -> None:
        """The updates of all are added as they come in."""
        strategies = self.make(), self.make()
        for strategy, turn in zip(strategies, (1, -1), strict=True):
            first, second = self.updates(strategy)[::turn]
            strategy.aggregate(first + second)
        _assert_same(strategies[0].state(), strategies[1].state())

    def test_a_sum_says_all_where_the_strategy_says_so(self) -> None:
        """Then a device with all people teaches it what two with some each do, and no update says whose it is."""
        if not STRATEGIES[self.name].is_sum:
            return
        apart, together = self.make(), self.make()
        first, second = self.updates(apart)
        assert not (first + second).clients()
        apart.aggregate(first + second)
        together.aggregate(self.whole(together))
        _assert_same(apart.state(), together.state())

    def test_it_takes_what_its_spec_says_and_no_other_part(self) -> None:
        """What devices answer is as it was sent after the wire; with anything else it is refused."""
        strategy, parts = self.make(), [resolve(part) for part in STRATEGIES[self.name].parts]
        for client, update in zip(self.clients * 2, self.updates(strategy), strict=False):
            arrived = unpack_update(pack_update(update), parts)
            check_gradients(arrived, strategy.broadcast(client).tensors)
            strategy.check(arrived)
            with pytest.raises(RunError, match="strange"):
                unpack_update(pack_update(update.put(STRANGE, {"x": torch.ones(1)})), parts)

    def test_a_round_without_anybody_is_abandoned_and_changes_nothing(self) -> None:
        """As happens when all devices are out of reach."""
        strategy = self._taught()
        before = {name: value.clone() for name, value in strategy.state().items()}
        with pytest.raises(RoundAbandoned):
            strategy.aggregate(Update())
        _assert_same(strategy.state(), before)

    def _taught(self, rounds: int = 1) -> Strategy:
        strategy = self.make()
        for _ in range(rounds):
            first, second = self.updates(strategy)
            strategy.aggregate(first + second)
        return strategy

    def _broadcasts(self, strategy: Strategy) -> list[str]:
        return [strategy.broadcast(client).name for client in self.clients]

    def _answer(self, strategy: Strategy, split: Split, rows: range) -> Update:
        people, local = split.take(np.array(rows)), self.settings().local
        sent = strategy.broadcast(None).tensors
        state = cohort.start_state(people.users, local, sent[VIEWS], seed=0)
        _, update = cohort.train(state, sent, histories(people), local, seed=0, round=1)
        return update


def _assert_same(left: Tensors, right: Tensors) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-6)
