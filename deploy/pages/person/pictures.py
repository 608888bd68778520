"""Small pictures of items, from wherever the catalogue says they are."""

from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from tessera.client.published.small_pictures import SmallPictures
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.pictures import open_picture
from tessera.common.errors import DataError

SIDE = 320
"""Longest side of a small picture, in pixels."""


class Pictures:
    """The pictures of a device's items, below `folder`: the dataset's, or the device's own where none is named, and the small
    ones that came with the published model."""

    def __init__(self, device: Path, folder: Path | None) -> None:
        catalogue, self._folder = load_catalogue(device, modalities=False), (folder or device).resolve()
        self._paths = {item: path for item, path in zip(catalogue.items, catalogue.images, strict=True) if path}
        self._small = SmallPictures(device)
        first = next(iter(self._paths), None)
        self.there = bool(self._small.files) or (first is not None and self._file(first) is not None)
        """Whether there are any."""

    def small(self, item: str) -> bytes | None:
        """An item's picture as JPEG; None where there is none that can be read."""
        file = self._file(item) or self._small.files.get(item)
        return _small(file) if file else None

    def _file(self, item: str) -> Path | None:
        """Where a picture is, which is never outside the folder, whatever the catalogue says."""
        if (path := self._paths.get(item)) is None:
            return None
        file = (self._folder / path).resolve()
        return file if file.is_relative_to(self._folder) and file.is_file() else None


@lru_cache(maxsize=512)
def _small(file: Path) -> bytes | None:
    try:
        picture = open_picture(file)
    except DataError:
        return None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = BytesIO()
    picture.save(content, "JPEG", quality=85)
    return content.getvalue()
