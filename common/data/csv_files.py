"""Reads CSV files as people have them: commas, semicolons, tabs or bars, in UTF-8 or UTF-16, with or without a byte-order mark.

All cells come as texts. What cannot be read is refused with the file, the line and what to do; no row is ever dropped.
"""

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import polars as pl

from tessera.common.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
CHUNK = 1 << 20
"""Bytes that are looked at at once."""
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Encodings by the byte-order mark that a file begins with."""


@dataclass(frozen=True)
class CsvFile:
    """A CSV file whose header was read.

    Raises `DataError` that names file and line for what is no text, a header without columns, and a column that stands twice.
    """

    path: Path
    encoding: str
    separator: str
    columns: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "CsvFile":
        """Find a file's encoding, its separator and its columns."""
        encoding = check_text(path)
        with path.open(encoding=encoding, newline="") as file:
            first = file.readline()
        separator = max(SEPARATORS, key=first.count)
        columns = tuple(next(csv.reader(StringIO(first), delimiter=separator), []))
        if not any(columns):
            raise DataError(f"{path} is empty: its first line names the columns")
        for place, name in enumerate(columns):
            if columns.index(name) != place:
                both = f"columns {columns.index(name) + 1} and {place + 1}"
                raise DataError(f"{path} calls {both} {name!r}: rename or remove one of them")
        return cls(path, encoding, separator, columns)

    def scan(self) -> pl.LazyFrame:
        """All rows, as texts; an empty cell is null. Its `collect` may raise polars' errors: see `explained`."""
        if self.encoding == "utf-16":
            text = self.path.read_text(encoding=self.encoding).encode()
            return pl.read_csv(text, infer_schema=False, separator=self.separator).lazy()
        return pl.scan_csv(self.path, infer_schema=False, separator=self.separator, glob=False)

    def said(self) -> str:
        """How the file was understood, in words."""
        encoding = {"utf-8-sig": "UTF-8 with a byte-order mark", "utf-16": "UTF-16"}.get(self.encoding, "UTF-8")
        return f"{self.path.name} was read as {encoding} with {SEPARATORS[self.separator]} between columns"

    def explained(self, error: Exception) -> DataError:
        """Say in which line a table could not be read, and what to do about it."""
        written = text_lines(self.path)
        for line, row in self._rows():
            if isinstance(row, str) or (written[line - 1].count('"') % 2 and "\n" not in "".join(row)):
                why = row if isinstance(row, str) else "a quote within a field"
                remedy = 'put a field with quotes into quotes, and write each quote in it twice ("12"" vinyl")'
                return DataError(f"{self.path} line {line} is no row of a CSV file ({why}): {remedy}")
            if len(row) > len(self.columns):
                remedy = f"put a field with {SEPARATORS[self.separator]} in it into quotes, or remove what is too much"
                return DataError(f"{self.path} line {line} has {len(row)} fields, not {len(self.columns)}: {remedy}")
        return DataError(f"{self.path} is not a readable table: {error}")

    def _rows(self) -> Iterator[tuple[int, list[str] | str]]:
        """The rows by the line they begin on, the header too; in place of one that is malformed, why, and then no more."""
        with self.path.open(encoding=self.encoding, newline="") as file:
            reader = csv.reader(file, delimiter=self.separator, strict=True)
            while True:
                line = reader.line_num + 1
                try:
                    yield line, next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield line, str(error)
                    return


def check_text(path: Path) -> str:
    """The encoding of a text file. Raises `DataError` that names file and line where it is neither UTF-8 nor UTF-16."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
            encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
            file.seek(0)
            decoder, line = codecs.getincrementaldecoder(encoding)(), 1
            while chunk := file.read(CHUNK):
                line = _decoded(path, decoder, chunk, line)
            _decoded(path, decoder, b"", line, final=True)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return encoding


def _decoded(path: Path, decoder: codecs.IncrementalDecoder, chunk: bytes, line: int, final: bool = False) -> int:
    """Decode a chunk that begins on a line, and return the line that the next one begins on."""
    try:
        return line + decoder.decode(chunk, final).count("\n")
    except UnicodeDecodeError as error:
        at = line + error.object[: error.start].count(b"\n")
        byte = f"byte {error.object[error.start]:#04x}" if error.start < len(error.object) else "its end"
        raise DataError(
            f"{path} line {at} is not UTF-8 ({byte}): save the file as UTF-8, such as by "
            f"iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}"
        ) from None


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, without their ends. A line ends where a new line begins, and nowhere else.

    Raises `DataError` that names file and line for what is no text.
    """
    text = path.read_text(encoding=check_text(path))  # \r\n and \r become \n
    return text.removesuffix("\n").split("\n") if text else []
