"""Defines what a prediction model is: which parameters stay on the device, and how they score the items for each user."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from tessera.client.histories import Histories
from tessera.client.losses import contrast, pick
from tessera.client.router import Routed
from tessera.common.protocol.tensors import Tensors
from tessera.common.registry.component import ComponentSettings


@dataclass(frozen=True)
class Parameter:
    """A private tensor of one user: its shape, and the standard deviation of its start (0 starts at zero).

    One that is not `kept` starts again in every round, from what the server sent.
    """

    shape: tuple[int, ...]
    scale: float = 0.0
    kept: bool = True


@dataclass(frozen=True)
class BackboneInput:
    """What a backbone computes from, for all users of a cohort.

    `private` holds the stacked parameters [n_users, ...], `sent` what the server broadcast, `histories` the events shown to
    the model, `routed` the views with each user's weights for them. `salt` seeds what is drawn in a step of training; without
    one nothing is drawn.
    """

    private: dict[str, Tensor]
    sent: Tensors
    histories: Histories
    routed: Routed
    salt: int | None = None


@dataclass(frozen=True)
class Inner:
    """Scores that are inner products of each user's `query` [n_users, dim] with the personalised items, plus an `offset`
    [n_users, 1] that is the same for all of a user's items."""

    query: Tensor
    offset: Tensor | float = 0.0


@dataclass(frozen=True)
class Comparison:
    """Cosines of users' histories and all items: `fused` [n_users, n_items] by all views together, `alone` [n_users, n_views,
    n_items] both in one view, `crossed` of that shape histories in one view and items in all of them."""

    fused: Tensor
    alone: Tensor
    crossed: Tensor


class Backbone(ABC):
    """A prediction model f(Fbar_i; theta_u) (FedVLR Eq. 5), computed for all users of a cohort at once.

    Row u of whatever it returns depends on row u of the private parameters and on user u's history only. It holds its
    settings and nothing else.
    """

    def __init__(self, settings: ComponentSettings) -> None:
        self.settings = settings

    @property
    def window(self) -> int | None:
        """How many events in a row it reads at once, where the next ones are asked for within so many; None: any."""
        return None

    @abstractmethod
    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Name the private parameters of one user."""

    @abstractmethod
    def scores(self, given: BackboneInput) -> Tensor:
        """Score the whole catalogue for every user, [n_users, n_items]."""

    def inner(self, given: BackboneInput) -> Inner | None:
        """What scores are inner products of, where they are no more than that: some losses then need no table of them."""
        return None

    def pairs(self, given: BackboneInput, users: Tensor, items: Tensor) -> Tensor:
        """Score users and items side by side, [n_pairs] each; worth a way of its own where a score is dear."""
        return pick(self.scores(given), users, items)

    def alone(self, given: BackboneInput, items: Tensor) -> Tensor:
        """Cosines of each user's history and some `items` [n_asked], both in one view, [n_users, n_views, n_asked]; of
        backbones whose spec says `views_alone`."""
        raise NotImplementedError(f"{self.settings.name} compares by all views together")

    def comparison(self, given: BackboneInput) -> "Comparison":
        """What views say together and alone; likewise."""
        raise NotImplementedError(f"{self.settings.name} compares by all views together")

    def penalty(self, given: BackboneInput, round: int) -> Tensor:
        """What is added to each user's loss, [n_users]; nothing by default."""
        return given.routed.weights.new_zeros(len(given.histories))

    def solved(self, given: BackboneInput) -> dict[str, Tensor]:
        """What has a closed form in what is given, and so need not be learnt or kept; nothing by default."""
        return {}

    def phases(self, names: list[str]) -> list[list[str]]:
        """Groups of the private parameters `names` that step one after the other in each epoch; all at once by default."""
        return [names]


@dataclass(frozen=True)
class LazyScores:
    """A backbone's scores of what it is given, computed as far as a loss asks for them."""

    backbone: Backbone
    given: BackboneInput

    def everything(self) -> Tensor:
        """Score the whole catalogue for every user, [n_users, n_items]."""
        return self.backbone.scores(self.given)

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Score users and items side by side, [n_pairs] each."""
        return self.backbone.pairs(self.given, users, items)

    def contrast(self, asked: Histories) -> tuple[Tensor, Tensor]:
        """The logarithm of the sum of exp of a user's scores of all items but cold ones, and the sum of those of the events
        that are `asked` for, [n_users] each."""
        routed = self.given.routed
        inner = self.backbone.inner(self.given) if routed.adds_up else None
        if inner is None:
            return contrast(self.everything(), asked)
        factors = routed.factors(inner.query)
        totals = routed.log_totals(factors, asked.cold_items)
        events = (factors * asked.pooled(routed.views)).sum((1, 2))
        if isinstance(inner.offset, float):
            return totals, events
        return totals + inner.offset[:, 0], events + asked.lengths() * inner.offset[:, 0]

    def alone(self, items: Tensor) -> Tensor:
        """Cosines of each user's history and some items, both in one view, [n_users, n_views, n_asked]."""
        return self.backbone.alone(self.given, items)
