"""Scores items by a query that sums the user's history in a view of its own, plus a private vector.

q_u = sum_{k in history} a_k H_k / |a| + p_u, with a_k = (1 + number of later events)^-recency: 1 for all, or less the older.
Linear on purpose: a squashed query loses two points of HR@50 on MovieLens. A user the federation never saw is served at
once, with p_u = 0.
"""

from torch import Tensor

from tessera.client.backbones.base import Backbone, BackboneInput, Inner, Parameter
from tessera.common.protocol.messages import HISTORY
from tessera.common.registry.component import QuerySettings


class History(Backbone):
    """score_ui = q_u . Fbar_ui."""

    settings: QuerySettings

    def parameters(self, dim: int, n_items: int) -> dict[str, Parameter]:
        """Name the private vector p_u [dim], zero at the start, where there is to be one."""
        return {"user": Parameter((dim,))} if self.settings.private_vector else {}

    def query(self, given: BackboneInput) -> Tensor:
        """What of the history is shown, summed in its view, and the private vector, [n_users, dim]."""
        pooled = given.histories.total(given.sent[HISTORY]) / given.histories.norms()[:, None]
        return pooled + given.private["user"] if self.settings.private_vector else pooled

    def inner(self, given: BackboneInput) -> Inner:
        """The query alone."""
        return Inner(self.query(given))

    def scores(self, given: BackboneInput) -> Tensor:
        """Query the personalised items."""
        return given.routed.scores(self.query(given))
