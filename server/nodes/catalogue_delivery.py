"""Brings nodes that hold an earlier version of the catalogue up to date: what they lack goes along with what they are asked."""

import logging

from tessera.common.data.catalogue import Catalogue
from tessera.common.data.catalogue_delta import Delta, Held, Pictures

log = logging.getLogger("tessera.server")


class CatalogueDelivery:
    """The catalogue of a run, and what of it nodes are owed that said what they hold: with small `pictures`, if the operator
    gives any."""

    def __init__(self, catalogue: Catalogue, pictures: Pictures = lambda rows: ()) -> None:
        self.catalogue, self._pictures = catalogue, pictures
        self._owed: dict[int, bytes] = {}
        self._made: dict[str, bytes] = {}

    def hear(self, node: int, held: str) -> None:
        """Take note of what a node says that it holds. Raises `DataError` where the catalogue does not extend that."""
        if held not in self._made:
            self._made = {
                held: Delta.between(self.catalogue, Held.read(held), self._pictures).write()
            }  # nodes mostly hold the same
        self._owed[node] = self._made[held]
        log.info("node %d gets the catalogue's later version: %d bytes", node, len(self._made[held]))

    def take(self, node: int) -> bytes:
        """What goes along with the next message to a node, once; nothing where it is up to date."""
        return self._owed.pop(node, b"")
