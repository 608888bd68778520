"""Reads sequences: one line a user, `user item item ...`, oldest first, as in SASRec's Beauty.txt."""

import re
from pathlib import Path

import polars as pl

from tessera.common.data.csv_files import text_lines
from tessera.common.datasets.raw import Options, RawDataset
from tessera.common.errors import DataError

BLANKS = re.compile(r"[ \t]+")
"""What parts the words of a line; other blanks may be in a word."""


def read_sequences(source: Path, _: Options) -> RawDataset:
    """Read a text file, or the only .txt file of a folder. An event's timestamp is its place in the line, from 0.

    Raises `DataError` that names the file and the line.
    """
    path = _only_text(source) if source.is_dir() else source
    lines = [[word for word in BLANKS.split(line) if word] for line in text_lines(path)]
    users: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if len(line) < 2:
            raise DataError(f"{path} line {number} is not 'user item item ...': {' '.join(line) or 'it is empty'}")
        if line[0] in users:
            raise DataError(f"{path} line {number}: user {line[0]!r} has a line already")
        users.add(line[0])
    lengths = [len(line) - 1 for line in lines]
    places = [place for length in lengths for place in range(length)]
    events = pl.DataFrame(
        {
            "user": [line[0] for line, length in zip(lines, lengths, strict=True) for _ in range(length)],
            "item": [item for line in lines for item in line[1:]],
            "timestamp": places,
        },
        schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64},
    )
    rules = ("a timestamp is the event's place in the user's line",)
    return RawDataset(events, path.parent, source.resolve().name, rules=rules)


def _only_text(folder: Path) -> Path:
    texts = sorted(folder.glob("*.txt"))
    if len(texts) != 1:
        raise DataError(f"{folder} holds {len(texts)} .txt files: name the one with the sequences")
    return texts[0]
