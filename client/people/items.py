"""Finds an item by what a person calls it: its id, its title, or a part of the title."""

from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import DataError

SHOWN = 5
"""How many candidates an error names."""


def find_item(catalogue: Catalogue, text: str) -> int:
    """Return the index of the item that `text` names: by id, else by its whole title, else by the one title that holds it.

    Letters may be small or large. Raises `DataError` that names the candidates where there are several, or says there is none.
    """
    found = matches(catalogue, text)
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"no item has the id {text!r}, or a title with that in it")
    several = ", ".join(f"{catalogue.titles[at]!r} ({catalogue.items[at]})" for at in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise DataError(f"{text!r} may be {several}{more}: name one by its id")


def matches(catalogue: Catalogue, text: str) -> list[int]:
    """Indices of all items that `text` may name: the one with this id, else those with this title, else with a part of it."""
    if text in catalogue.items:
        return [catalogue.items.index(text)]
    wanted = text.casefold().strip()
    titles = [title.casefold() for title in catalogue.titles]
    found = [at for at, title in enumerate(titles) if title == wanted]
    return found or [at for at, title in enumerate(titles) if wanted and wanted in title]
