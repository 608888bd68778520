"""Reads times: whole numbers as they are, or ISO 8601 as microseconds since 1970. Nothing is guessed."""

from pathlib import Path

import polars as pl

from tessera.common.errors import DataError

ISO = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?(?: ?(Z|UTC|[+-]\d{2}:?\d{2}))?)?$"
"""A date and, if there is one, a time of day and its offset from UTC; without an offset a time is UTC's."""
MOST = {"2": 23, "3": 59, "4": 60}
"""The largest hour, minute and second (of a leap second), by their groups in `ISO`."""
SECOND = 10**6


def whole_times(path: Path, name: str, column: pl.Series) -> pl.Series:
    """Times that were read from a column `name` of `path` as whole numbers. Raises `DataError` that names the first other row.

    A column holds numbers or ISO 8601 times, not both: their units are not the same.
    """
    numbers = column.cast(pl.Int64, strict=False)
    if not numbers.null_count():
        return numbers
    times = iso_times(column)
    if not times.null_count():
        return times
    bad = times.is_null() & numbers.is_null()
    row = int(bad.arg_max() or 0) if bad.any() else int(times.is_null().arg_max() or 0)
    if bad.any():
        told = "is neither a whole number nor an ISO 8601 time, such as 2018-02-01 or 2018-02-01T12:30:00Z"
    else:
        told = "is a whole number, and other rows have ISO 8601 times: write all alike"
    raise DataError(f"{path} row {row + 1}: {name} {column[row]!r} {told}")


def iso_times(column: pl.Series) -> pl.Series:
    """Microseconds since 1970 of ISO 8601 dates and times, [n]; null where there is none, or no such day or hour."""
    groups = pl.DataFrame({"text": column}).select(pl.col("text").str.extract_groups(ISO)).unnest("text")
    numbers = [pl.col(group).cast(pl.Int64).fill_null(0).alias(group) for group in MOST]
    fraction = pl.col("5").fill_null("").str.pad_end(6, "0").str.head(6).cast(pl.Int64)
    offset = pl.col("6").str.replace("Z|UTC", "+0000").str.replace(":", "").fill_null("+0000")
    minutes = offset.str.slice(1, 2).cast(pl.Int64) * 60 + offset.str.slice(3, 2).cast(pl.Int64)
    sign = pl.when(offset.str.starts_with("-")).then(-1).otherwise(1)
    parts = groups.select(
        pl.col("1").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64).alias("days"),
        *numbers,
        fraction.alias("fraction"),
        (sign * minutes).alias("offset"),
    )
    fits = pl.all_horizontal(pl.col(group) <= most for group, most in MOST.items()) & (pl.col("offset").abs() < 24 * 60)
    seconds = ((pl.col("days") * 24 + pl.col("2")) * 60 + pl.col("3") - pl.col("offset")) * 60 + pl.col("4")
    return parts.select(pl.when(fits).then(seconds * SECOND + pl.col("fraction")).alias(column.name)).to_series()
