"""Small pictures of items that a device took along with the published model.

pictures/list.json      the list as it came, by rows of the published catalogue; replaced last
pictures/SHA256.jpg     each picture, by the hash of its content
"""

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from tessera.common.data.catalogue import load_catalogue
from tessera.common.errors import DataError
from tessera.common.protocol.published import SMALL_BYTES, PictureList
from tessera.common.utils.atomic_files import digest, write_bytes

PICTURES, LIST = "pictures", "list.json"
Fetch = Callable[[str, int], bytes]
"""From a picture's hash and its bytes to its content."""


def take_pictures(folder: Path, listed: PictureList, fetch: Fetch) -> tuple[int, int]:
    """Have the listed pictures in a device's folder, and no others: those that are there are not fetched again.

    Returns how many items have one, and how many bytes came. Raises `DataError` for what is no small picture; what was there
    before stays then.
    """
    from tessera.common.data.pictures import require_small  # only here: a device that wants none needs no decoder

    place, came = folder / PICTURES, 0
    for name, size in set(listed.rows.values()):
        if not (file := place / f"{name}.jpg").exists():
            content = fetch(name, size)
            require_small(content, SMALL_BYTES, f"picture {name[:12]} of the published model")
            write_bytes(file, content)
            came += len(content)
    write_bytes(place / LIST, listed.model_dump_json().encode())
    kept = {name for name, _ in listed.rows.values()}
    for file in place.glob("*.jpg"):
        if re.fullmatch("[0-9a-f]{64}", file.stem) and file.stem not in kept:
            file.unlink(missing_ok=True)
    return len(listed.rows), came


def add_pictures(folder: Path, pictures: Mapping[int, bytes]) -> None:
    """Add small pictures by row to a device's, if it has taken any: it wants them then. Raises `DataError`; then it has those
    that it had."""
    place = folder / PICTURES
    if not pictures or not (place / LIST).exists():
        return
    listed = PictureList.read((place / LIST).read_bytes(), str(place / LIST))
    rows = dict(listed.rows)
    from tessera.common.data.pictures import require_small

    for row, content in pictures.items():
        require_small(content, SMALL_BYTES, f"the picture of row {row}")
        rows[row] = digest(content), len(content)
        write_bytes(place / f"{rows[row][0]}.jpg", content)
    write_bytes(place / LIST, PictureList(rows=rows).model_dump_json().encode())


class SmallPictures:
    """The small pictures that are in a device's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def files(self) -> dict[str, Path]:
        """Where each item's is, by the item's id; of items without one nothing, and nothing of a list that cannot be read."""
        place = self._folder / PICTURES
        if not (place / LIST).exists():
            return {}
        try:
            listed = PictureList.read((place / LIST).read_bytes(), str(place / LIST))
            items = load_catalogue(self._folder, modalities=False).items
        except (OSError, DataError):
            return {}
        found = {items[row]: place / f"{name}.jpg" for row, (name, _) in listed.rows.items() if row < len(items)}
        return {item: path for item, path in found.items() if path.exists()}
