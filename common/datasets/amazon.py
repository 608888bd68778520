"""Reads Amazon reviews and the items' metadata, in any of their three releases: 2014, 2018 and 2023."""

import ast
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from tessera.common.data.pictures import pictures_in
from tessera.common.datasets.published_counts import AMAZON_RELEASE, MISSING_TITLE, UNTITLED
from tessera.common.datasets.raw import ENCODERS, NAME, NO_ITEMS, NUMBER, WHOLE, Options, RawDataset, read_features
from tessera.common.errors import DataError

TEXT = "utf-8-sig"
"""UTF-8, with or without a byte-order mark."""
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
REVIEWS_OF_2023 = {"user": "user_id", "rating": "rating", "timestamp": "timestamp"}
REVIEWS_BEFORE = {"user": "reviewerID", "rating": "overall", "timestamp": "unixReviewTime"}
ITEM = ("parent_asin", "asin")
MARKUP = re.compile(
    r"<(?:!--.*?(?:-->|\Z)|(script|style)\b.*?(?:</\1\s*>|\Z)|[/!?]?[a-z][^<>]*>)", re.IGNORECASE | re.DOTALL
)
"""Comments, scripts and styles with what they hold, and tags; not a lone < or >."""
SCRIPT = "getTime"
"""Stands in the titles of 2018 that are a script of the page instead, as that release's own notes say."""
NO_PICTURE = "no item has a picture in images/ or image features, so there is no image modality"


@dataclass(frozen=True)
class Line:
    """One line of a file of reviews or metadata."""

    path: Path
    number: int
    record: dict[str, Any]

    def refuse(self, problem: str) -> NoReturn:
        """Raise a `DataError` that names file and line."""
        raise DataError(f"{self.path} line {self.number}: {problem}")

    def name(self, *fields: str) -> str:
        """The first of `fields` that is not empty."""
        name = next((self.record[field] for field in fields if self.record.get(field)), None)
        if not isinstance(name, str) or not name.isprintable():
            self.refuse(f"{' or '.join(fields)} is {'empty or missing' if name is None else f'{name!r}, not a text'}")
        return name

    def number_of(self, field: str) -> float:
        """A finite number, within the range of 64 bits."""
        value = self.record.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63:
            said = str(value)[:30] if isinstance(value, int) else repr(value)
            self.refuse(
                f"{field} is {said}, not a number of 64 bits" if field in self.record else f"{field} is missing"
            )
        return value

    def whole(self, field: str) -> int:
        """A whole number of 64 bits."""
        value = self.number_of(field)
        if not isinstance(value, int):
            self.refuse(f"{field} is {value!r}, not a whole number")
        return value

    def text(self, field: str) -> str:
        """A text or a list of texts, without HTML; "" where there is none."""
        value = self.record.get(field)
        parts = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            self.refuse(f"{field} is {str(value)[:80]!r}, neither a text nor a list of texts")
        return " ".join(filter(None, map(plain, parts)))


def read_amazon(source: Path, _: Options) -> RawDataset:
    """Read a folder with one file of reviews and one of metadata, as .json or .jsonl, gzipped or not, a record a line.

    They are recognised by their fields. Reviews: reviewerID, asin, overall, unixReviewTime (2014, 2018; seconds) or
    user_id, parent_asin or else asin, rating, timestamp (2023; milliseconds). Metadata: asin or parent_asin, title,
    description or where that is empty feature(s); those of 2014 are Python literals, and never evaluated. Beside them
    images/ASIN.jpg, or of another kind, and {image,text}_features.npy with {image,text}_ids.npy. Raises `DataError` that names
    file, line and field.
    """
    reviews, metadata = _files(source)
    events, release = _reviews(reviews)
    items, rules = _items(source, metadata, events)
    features = read_features(source, {})
    if "image" not in features and not (items["image"] != "").any():
        rules.append(NO_PICTURE)
    rules.insert(0, AMAZON_RELEASE.format(release))
    return RawDataset(events, source, f"{source.resolve().name}/{reviews.name}", items, features, tuple(rules))


def _files(source: Path) -> tuple[Path, Path]:
    """The reviews and the metadata in a folder."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: name the one with the reviews and the metadata")
    found: dict[str, list[Path]] = {"reviews": [], "metadata": []}
    for path in sorted(source.iterdir()):
        if path.name.endswith(SUFFIXES) and path.name != ENCODERS:
            first = next(_lines(path), None)
            fields = set(first.record) if first else set()
            if fields & {"reviewerID", "user_id"}:
                found["reviews"].append(path)
            elif fields & set(ITEM):
                found["metadata"].append(path)
    for what, paths in found.items():
        if len(paths) != 1:
            names = f" ({', '.join(path.name for path in paths)}): leave one" if paths else ""
            raise DataError(f"{source} has {len(paths) or 'no'} file{'s' * (len(paths) > 1)} of {what}{names}")
    return found["reviews"][0], found["metadata"][0]


def _lines(path: Path) -> Iterator[Line]:
    """The records of a file, one after the other; blank lines are none."""
    try:
        with gzip.open(path, "rt", encoding=TEXT) if path.suffix == ".gz" else path.open(encoding=TEXT) as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield _line(path, number, text)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path} is not a readable text file: {error}") from None


def _line(path: Path, number: int, text: str) -> Line:
    """Parse a line as JSON or else as a Python literal."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise DataError(f"{path} line {number} is neither JSON nor a Python literal: {text[:60]!r}") from None
    if not isinstance(record, dict):
        raise DataError(f"{path} line {number} is not a record: {text[:60]!r}")
    return Line(path, number, record)


def _reviews(path: Path) -> tuple[pl.DataFrame, int]:
    """The events, and the year of the release."""
    columns: dict[str, list[Any]] = {"user": [], "item": [], "rating": [], "timestamp": []}
    fields, year = REVIEWS_BEFORE, 0
    for line in _lines(path):
        if not year:
            year = 2023 if "user_id" in line.record else 2018 if "verified" in line.record else 2014
            fields = REVIEWS_OF_2023 if year == 2023 else REVIEWS_BEFORE
        columns["user"].append(line.name(fields["user"]))
        columns["item"].append(line.name(*ITEM) if year == 2023 else line.name("asin"))
        columns["rating"].append(float(line.number_of(fields["rating"])))
        columns["timestamp"].append(line.whole(fields["timestamp"]))
    return pl.DataFrame(columns, schema={"user": NAME, "item": NAME, "rating": NUMBER, "timestamp": WHOLE}), year


def _items(source: Path, metadata: Path, events: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Every item that is described or reviewed, and what was decided about them."""
    known: dict[str, tuple[str, str]] = {}
    repeated = 0
    for line in _lines(metadata):
        item = line.name(*ITEM)
        repeated += item in known
        known.setdefault(
            item, (_title(line), line.text("description") or line.text("features") or line.text("feature"))
        )
    missing = [item for item in events["item"].unique(maintain_order=True) if item not in known]
    known.update(dict.fromkeys(missing, (MISSING_TITLE, "")))
    names, passed = pictures_in(source / "images")
    pictures = {item: f"images/{name}" for item, name in names.items()}
    rows = [(item, *texts, pictures.get(item, "")) for item, texts in known.items()]
    items = pl.DataFrame(rows, schema=NO_ITEMS.schema, orient="row")
    counted = {
        "lines of metadata that repeat an item, of which the first counts": repeated,
        "reviewed items without metadata, and so without a title": len(missing),
        UNTITLED: int((items["title"] == MISSING_TITLE).sum()),
    }
    return items, [*(f"{what}: {count}" for what, count in counted.items() if count), *passed]


def _title(line: Line) -> str:
    title = line.text("title")
    return MISSING_TITLE if not title or SCRIPT in title else title


def plain(text: str) -> str:
    """A text without HTML tags and entities, and without halves of characters, its words parted by single spaces."""
    text = unescape(MARKUP.sub(" ", text)).encode(errors="ignore").decode()
    return " ".join(text.split())
