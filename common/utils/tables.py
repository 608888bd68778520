"""Reads and writes parquet tables: written atomically, and read with errors that name the file and the column."""

from io import BytesIO
from pathlib import Path

import polars as pl

from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_bytes, write_bytes
from tessera.common.utils.encryption.seam import folder_of


def read_table(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """Read a parquet table that must have `columns`. Raises `DataError` that names the file and the column."""
    try:
        frame = pl.read_parquet(BytesIO(read_bytes(path)) if folder_of(path) else path, glob=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; convert the data first (tessera data convert)") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from None
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r} (it has {', '.join(frame.columns)})")
    return frame


def write_table(path: Path, frame: pl.DataFrame) -> None:
    """Write a parquet table, atomically."""
    buffer = BytesIO()
    frame.write_parquet(buffer)
    write_bytes(path, buffer.getvalue())
