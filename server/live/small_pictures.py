"""Makes small pictures of a dataset's items, for those who want them: once of each file, until it changes."""

import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import DataError
from tessera.common.protocol.published import SMALL_BYTES

log = logging.getLogger("tessera.server")


def small_pictures(dataset: Path, catalogue: Catalogue, rows: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Small pictures of some rows, of those whose picture lies in the dataset's folder and can be read."""
    inside = dataset.resolve()
    for row in rows:
        file = (inside / catalogue.images[row]).resolve()
        if file.is_relative_to(inside) and file.is_file():
            stat = file.stat()
            if content := _small(file, stat.st_mtime_ns, stat.st_size):
                yield row, content


@lru_cache(maxsize=1 << 16)
def _small(file: Path, time: int, size: int) -> bytes | None:
    """A small picture of a file, as it was at a `time`; None where it cannot be read, which is said."""
    from tessera.common.data.pictures import small_picture  # only here: most give none

    try:
        return small_picture(file, SMALL_BYTES)
    except DataError as error:
        log.warning("%s: it is given to nobody", error)
        return None
