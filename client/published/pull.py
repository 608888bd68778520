"""Takes the model that a server publishes: what the device lacks of it, and nothing that is not what its hash says.

What has come lies in `.pull` until all of it is there: a pull that is cut goes on from there. Then it takes its places while
nothing else uses the device's folder, the manifest last.
"""

import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import polars as pl

from tessera.client.device_folder import DeviceFolder
from tessera.client.people.events import PEOPLE, in_use
from tessera.client.published.model import FOLDER, POPULARITY_FILE
from tessera.client.published.small_pictures import LIST, PICTURES, take_pictures
from tessera.common.data.catalogue import ITEMS, Catalogue, load_catalogue
from tessera.common.data.folder_kinds import INTERACTIONS, is_dataset, no_device
from tessera.common.errors import DataError, Locked, TesseraError
from tessera.common.protocol.published import (
    BLOBS,
    LARGEST_MANIFEST,
    MANIFEST,
    FileName,
    PictureList,
    Published,
    PublishedFile,
)
from tessera.common.protocol.tensors import content_hash
from tessera.common.utils.atomic_files import file_digest, read_tensors, storing, write_bytes
from tessera.common.utils.folder_lock import hold_folder
from tessera.common.utils.tables import write_table

STAGE = ".pull"
NAMES: dict[FileName, str] = {"tensors": "tensors.safetensors", "items": ITEMS, "popularity": POPULARITY_FILE}
SECONDS = 30.0
"""How long a server may be silent."""
TRIES = 3
"""How often a pull begins anew because another model was published meanwhile."""


class Unreachable(TesseraError):
    """A server did not give what it was asked for."""


class _Replaced(Exception):
    """What the manifest names is not there any more."""


@dataclass(frozen=True)
class Pulled:
    """The model that a device now holds, how many bytes came for it, and how many items have a small picture, if asked for."""

    model: Published
    bytes: int
    pictures: int = 0


def pull(folder: Path, address: str, ca: Path, pictures: bool = False) -> Pulled:
    """Take the model that the server at `address` ("HOST:PORT") publishes; its certificate must be signed by `ca`.

    With `pictures` small pictures of the items come too, where it publishes any: those that the device lacks.
    The device's folder is made where there is none, without anybody in it. Raises `Unreachable` when the server does not
    answer, and `DataError` when what it gives is not what it says, or of another catalogue; then nothing has changed.
    """
    if (folder / "questions").exists():
        raise DataError(
            f"{folder} is a device that answers questions about items: models that recommend are not for it"
        )
    if is_dataset(folder):
        raise DataError(no_device(folder))
    with _client(address, ca) as client:
        for _ in range(TRIES):
            model = _manifest(client, address)
            try:
                return _take(client, folder, model, pictures)
            except _Replaced:
                continue
    raise Unreachable(f"{address} has published another model {TRIES} times while one came: pull again")


def _take(client: httpx.Client, folder: Path, model: Published, pictures: bool) -> Pulled:
    """Take a model's files, and give them their places. Raises `_Replaced` where they are not there any more."""
    stage, came = folder / STAGE, 0
    with hold_folder(stage):
        for name, file in model.files.items():
            came += _fetch(client, file, stage / NAMES[name], _place(folder, name, model))
        _install(folder, stage, model)
        found = 0
        if pictures and model.pictures:
            came += _fetch(client, model.pictures, stage / LIST, folder / PICTURES / LIST)
            listed = PictureList.read((stage / LIST).read_bytes(), client.base_url.netloc.decode())
            found, more = take_pictures(folder, listed, lambda name, size: _picture(client, stage, name, size))
            came += more
        shutil.rmtree(stage, ignore_errors=True)
    return Pulled(model, came, found)


def _picture(client: httpx.Client, stage: Path, name: str, size: int) -> bytes:
    """A small picture by its hash."""
    _fetch(client, PublishedFile(sha256=name, size=size), stage / name, stage / name)
    content = (stage / name).read_bytes()
    (stage / name).unlink()
    return content


@contextmanager
def _client(address: str, ca: Path) -> Iterator[httpx.Client]:
    """Within it, ask the server; that it does not answer is an `Unreachable`."""
    context = ssl.create_default_context(cafile=ca)
    headers = {"accept-encoding": "identity"}
    try:
        with httpx.Client(base_url=f"https://{address}", verify=context, timeout=SECONDS, headers=headers) as client:
            yield client
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(
            f"{address}: {reason}; what has come is kept: pull again, at the port that the server publishes at"
        ) from None


def _manifest(client: httpx.Client, address: str) -> Published:
    content = b""
    with client.stream("GET", f"/{MANIFEST}") as response:
        for part in response.iter_raw():
            content += part
            if len(content) > LARGEST_MANIFEST:
                raise DataError(f"{address} gives more than a manifest: is it a server of ours?")
    if response.status_code == httpx.codes.NOT_FOUND:
        raise Unreachable(f"{address} has published no model yet: its first run does, once it is evaluated")
    _require(response, address)
    return Published.read(content, address)


def _fetch(client: httpx.Client, file: PublishedFile, path: Path, place: Path) -> int:
    """Have a file at `path`, a copy of what is at its `place` where it is the same; return how many bytes came."""
    for held in (path, place):
        if held.is_file() and held.stat().st_size == file.size and file_digest(held) == file.sha256:
            if held != path:
                shutil.copyfile(held, path)
            return 0
    part = path.with_name(f"{file.sha256}.part")
    there = part.stat().st_size if part.exists() else 0
    came = _download(client, file, part, there) if there < file.size or not part.exists() else 0
    if part.stat().st_size != file.size or file_digest(part) != file.sha256:
        part.unlink()
        raise DataError(
            f"{client.base_url.netloc.decode()} gave a file {path.name} that is not what its hash says: pull again"
        )
    part.replace(path)
    return came


def _download(client: httpx.Client, file: PublishedFile, part: Path, there: int) -> int:
    """Add to the first `there` bytes what is missing, or take the file from its start; return how many bytes came."""
    came, headers = 0, {"range": f"bytes={there}-"} if there else {}
    with client.stream("GET", f"/{BLOBS}/{file.sha256}", headers=headers) as response:
        if response.status_code == httpx.codes.NOT_FOUND:
            raise _Replaced
        _require(response, client.base_url.netloc.decode())
        go_on = response.status_code == httpx.codes.PARTIAL_CONTENT
        with storing(part), part.open("ab" if go_on else "wb") as output:
            for content in response.iter_raw():
                came += len(content)
                if came > file.size - there * go_on:
                    raise DataError(f"{client.base_url.netloc.decode()} gives more of a file than it says there is")
                output.write(content)
    return came


def _require(response: httpx.Response, address: str) -> None:
    if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise Unreachable(f"{address} answers {response.status_code}: is it the port that the server publishes at?")


def _place(folder: Path, name: FileName, model: Published) -> Path:
    """Where a device has a file of a model."""
    places: dict[FileName, Path] = {
        "tensors": DeviceFolder(folder).tensors(model.tensors),
        "items": folder / ITEMS,
        "popularity": folder / FOLDER / POPULARITY_FILE,
    }
    return places[name]


def _install(folder: Path, stage: Path, model: Published) -> None:
    """Give all that came its place. Raises `DataError` for what does not fit; then nothing has changed."""
    with in_use(folder):
        if content_hash(read_tensors(stage / NAMES["tensors"])[0]) != model.tensors:
            raise DataError("the tensors that were published are not those that the manifest names: pull again")
        if not _knows_more(folder, load_catalogue(stage, modalities=False), model):
            _move(stage / ITEMS, folder / ITEMS)
        if not (folder / INTERACTIONS).exists() and not (folder / PEOPLE).exists():
            schema = {"user": pl.String, "item": pl.Int64, "timestamp": pl.Int64}
            write_table(folder / INTERACTIONS, pl.DataFrame(schema=schema))
        _move(stage / NAMES["tensors"], _place(folder, "tensors", model))
        popularity = _place(folder, "popularity", model)
        if "popularity" in model.files:
            _move(stage / NAMES["popularity"], popularity)
        else:
            popularity.unlink(missing_ok=True)
        write_bytes(folder / FOLDER / MANIFEST, model.model_dump_json(indent=2).encode())
        with suppress(
            Locked
        ):  # without the key nobody can say which views its runs need: the next task drops the others
            DeviceFolder(folder).tidy()


def _knows_more(folder: Path, published: Catalogue, model: Published) -> bool:
    """Whether the device's catalogue has the published one's items and more. Raises `DataError` where neither extends the
    other: what the device's people had would be other items."""
    if (published.sha256, len(published)) != (model.catalogue.sha256, model.catalogue.n_items):
        raise DataError("the items that were published are not those that the manifest names: pull again")
    if not (folder / ITEMS).exists():
        return False
    own = load_catalogue(folder, modalities=False)
    shared = min(len(own), len(published))
    if own.items[:shared] != published.items[:shared]:
        raise DataError(f"{folder} has other items than the published model: pull into another folder")
    return len(own) > len(published)


def _move(source: Path, place: Path) -> None:
    with storing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        source.replace(place)
