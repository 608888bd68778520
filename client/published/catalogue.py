"""Takes in later versions of the catalogue, which a server sends along with a task."""

import logging
from base64 import b64decode
from pathlib import Path

from tessera.client.published.small_pictures import LIST, PICTURES, add_pictures
from tessera.common.data.catalogue import load_catalogue, save_items
from tessera.common.data.catalogue_delta import Delta, Held, changed
from tessera.common.errors import DataError

log = logging.getLogger("tessera.device")


class CatalogueOutdated(Exception):
    """A device holds another catalogue than its task is of: the server has to send what changed. `held` says which it holds."""

    def __init__(self, held: str) -> None:
        super().__init__(held)
        self.held = held


def keep_up(folder: Path, wanted: str, delta: bytes) -> None:
    """Have the catalogue with hash `wanted` in a device's folder, by the change that came along, if one did.

    Raises `CatalogueOutdated` where none came that would do, and `DataError` for one that cannot be taken; then nothing has
    changed.
    """
    own = load_catalogue(folder, modalities=False)
    if own.sha256 == wanted:
        return
    if not delta or (change := Delta.read(delta)).sha256 != wanted:
        log.info("this device holds another version of the catalogue, of %d items: asking for what changed", len(own))
        wants = (folder / PICTURES / LIST).exists()
        raise CatalogueOutdated(Held.of(own).model_copy(update={"pictures": wants}).model_dump_json())
    newer = changed(own, change)
    save_items(newer, folder)
    try:
        add_pictures(folder, {row: b64decode(content) for row, content in change.pictures.items() if row < len(newer)})
    except (DataError, ValueError) as error:
        log.warning("small pictures that came along are left out: %s", error)
    told = f"{len(newer) - len(own)} items are new, {len(change.retired)} are retired"
    log.info("the catalogue has %d items now: %s", len(newer), told)
