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
    PictureList,
    Published,
    PublishedCatalogue,
    PublishedFile,
    popularity_levels,
)
from tessera.common.protocol.tensors import Tensors
from tessera.common.utils.atomic_files import (
    digest,
    file_digest,
    storing,
    sweep,
    write_bytes,
    write_json,
    write_tensors,
)
from tessera.server.live.small_pictures import small_pictures
from tessera.server.tasks import Tasks

log = logging.getLogger("tessera.server")
TENSORS, PICTURES = "tensors.safetensors", "pictures.json"


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
        pictures=blobs.pictures(tasks.folder.pictures, catalogue) if tasks.folder.pictures else None,
    )
    before = published_in(folder)
    write_json(folder / MANIFEST, published.model_dump(mode="json"))
    blobs.keep([one for one in (before, published) if one])
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

    def pictures(self, dataset: Path, catalogue: Catalogue) -> PublishedFile:
        """Keep small pictures of the items, and their list."""
        rows: dict[int, tuple[str, int]] = {}
        for row, content in small_pictures(dataset, catalogue, range(len(catalogue))):
            rows[row] = digest(content), len(content)
            if not (self.folder / rows[row][0]).exists():
                write_bytes(self.folder / rows[row][0], content)
        write_bytes(self._new / PICTURES, PictureList(rows=rows).model_dump_json().encode())
        return self._named(PICTURES)

    def keep(self, models: Iterable[Published]) -> None:
        """Remove all files that none of the models has, and what was left half-made."""
        kept = set[str]()
        for model in models:
            kept |= {file.sha256 for file in model.files.values()}
            if model.pictures:
                kept.add(model.pictures.sha256)
                with suppress(OSError, DataError):
                    listed = PictureList.read((self.folder / model.pictures.sha256).read_bytes(), PICTURES)
                    kept |= {name for name, _ in listed.rows.values()}
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
