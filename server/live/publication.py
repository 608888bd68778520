"""Publishes the best model of a run, so that devices can take it which never took part.

manifest.json       which round of which run it is, and its files (`tessera.common.protocol.published`)
blobs/SHA256        the files, by the hash of their content: what has not changed is not written again

The manifest is replaced last, and what the one before it names stays: whoever is reading it gets all of it.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from tessera.common.data.catalogue import ITEMS, Catalogue, save_items
from tessera.common.errors import DataError
from tessera.common.protocol.messages import COUNTS
from tessera.common.protocol.published import (
    BLOBS,
    MANIFEST,
    POPULARITY,
    Continued,
    FileName,
    Published,
    PublishedCatalogue,
    PublishedFile,
    popularity_levels,
)
from tessera.common.protocol.tensors import Tensors
from tessera.common.utils.atomic_files import file_digest, storing, sweep, write_json, write_tensors
from tessera.server.tasks import Tasks

log = logging.getLogger("tessera.server")
TENSORS = "tensors.safetensors"


def publish(folder: Path, tasks: Tasks, catalogue: Catalogue, counts: Tensors, round: int) -> None:
    """Publish below `folder` what clients have of `round`, which is what the strategy now broadcasts. Raises `StorageError`.

    `counts` are of the items, as far as they are known. In a run with noise of devices nothing is told of them: the model is
    what the noise covers. Where devices have towers of their own, or answer questions, there is no model for all.
    """
    settings = tasks.device_settings
    if settings.asks_questions or settings.strategy_spec.has_towers:
        return
    broadcast = tasks.strategy.broadcast(None)
    blobs = Blobs(folder / BLOBS)
    files: dict[FileName, PublishedFile] = {
        "tensors": blobs.tensors(broadcast.content),
        "items": blobs.items(catalogue),
    }
    if COUNTS in counts and not settings.privacy.noise_multiplier:
        files["popularity"] = blobs.tensors({POPULARITY: popularity_levels(counts[COUNTS])})
    published = Published(
        run=tasks.folder.run,
        round=round,
        continues=tuple(Continued(run=one.run, round=one.round) for one in tasks.folder.continues),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        views=tasks.strategy.views,
        settings=settings,
        catalogue=PublishedCatalogue(sha256=catalogue.sha256, n_items=len(catalogue)),
        tensors=broadcast.name,
        files=files,
    )
    before = published_in(folder)
    write_json(folder / MANIFEST, published.model_dump(mode="json"))
    blobs.keep(file for one in (before, published) if one for file in one.files.values())
    log.info("round %d of %s is published, with %d items", round, tasks.folder.run, len(catalogue))


def published_in(folder: Path) -> Published | None:
    """What is published below `folder`; None where nothing is, or it cannot be read."""
    with suppress(OSError, DataError):
        return Published.read((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    return None


class Blobs:
    """Files in a folder, each called by the SHA-256 of its content; one that is being made lies in `new` beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._new = folder, folder.with_name("new")
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def tensors(self, tensors: Tensors) -> PublishedFile:
        """Keep tensors, written as devices write them."""
        write_tensors(self._new / TENSORS, tensors)
        return self._named(TENSORS)

    def items(self, catalogue: Catalogue) -> PublishedFile:
        """Keep what can be shown of the items."""
        save_items(catalogue, self._new)
        return self._named(ITEMS)

    def keep(self, files: Iterable[PublishedFile]) -> None:
        """Remove all others, and what was left half-made."""
        kept = {file.sha256 for file in files}
        sweep(self._new)
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _named(self, name: str) -> PublishedFile:
        new = self._new / name
        file = PublishedFile(sha256=file_digest(new), size=new.stat().st_size)
        with storing(new):
            new.replace(self.folder / file.sha256)
        return file
