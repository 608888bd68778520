"""What a prediction model is: which parameters stay on the device, and how they score the personalised items."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from client.histories import Histories
from client.router import Routed
from common.protocol import Tensors


@dataclass(frozen=True)
class Parameter:
    """A private tensor of one user: its shape, and the standard deviation of its start (0 starts at zero)."""

    shape: tuple[int, ...]
    scale: float = 0.0


class Backbone(ABC):
    """A prediction model f(Fbar_i; theta_u) (FedVLR Eq. 5), computed for all users of a cohort at once."""

    @abstractmethod
    def parameters(self, dim: int) -> dict[str, Parameter]:
        """Name the private parameters of one user."""

    @abstractmethod
    def scores(self, private: dict[str, Tensor], sent: Tensors, histories: Histories, routed: Routed) -> Tensor:
        """Score the whole catalogue for every user, [n_users, n_items].

        `private` holds the stacked parameters, `sent` what the server broadcast. Row u may depend on row u of the private
        parameters and on user u's history only.
        """
