"""Prints tables so that no word is broken, however narrow the terminal is."""

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDE = 10_000


def print_table(console: Console, table: Table) -> None:
    """Print a table whose columns are as wide as their longest word at least; where the terminal is too narrow for that, its
    rows one below the other, a line for each of their cells."""
    options = console.options.update(max_width=WIDE)
    sizes = [_size(console, [column.header, *column.cells]) for column in table.columns]
    least = sum(size.minimum for size in sizes)
    frame = Measurement.get(console, options, _bare(table)).minimum - len(table.columns)
    room = console.width - frame
    if least > room:
        _print_rows(console, table)
        return
    widths = _shared([size.minimum for size in sizes], [size.maximum for size in sizes], room)
    for column, width in zip(table.columns, widths, strict=True):
        column.min_width = column.width = width
    console.print(table)


def _size(console: Console, cells: Sequence[object]) -> Measurement:
    """The longest word of a column, and its longest line."""
    found = [Measurement.get(console, console.options.update(max_width=WIDE), cell) for cell in cells]  # type: ignore[arg-type]
    return Measurement(max(one.minimum for one in found), max(one.maximum for one in found))


def _bare(table: Table) -> Table:
    """The same columns with a letter in each: what is left of its width is frame and padding."""
    bare = Table(*("x" for _ in table.columns), box=table.box, pad_edge=table.pad_edge, padding=table.padding)
    bare.collapse_padding, bare.show_edge, bare.show_header = table.collapse_padding, table.show_edge, True
    return bare


def _shared(least: list[int], most: list[int], room: int) -> list[int]:
    """Widths between the least and the most of each column that fill the room: the narrowest grow first, all alike."""
    widths = list(least)
    left = room - sum(widths)
    while left > 0 and (growing := [place for place, width in enumerate(widths) if width < most[place]]):
        narrowest = min(growing, key=lambda place: widths[place])
        widths[narrowest] += 1
        left -= 1
    return widths


def _print_rows(console: Console, table: Table) -> None:
    if table.title:
        console.print(table.title, soft_wrap=True)
    heads = [_text(console, column.header) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        for head, cell in zip(heads, (_text(console, cell) for cell in cells), strict=True):
            if cell.plain:
                line = Text.assemble(head, ": " if head.plain else "", cell)
                console.print(line, soft_wrap=max(map(len, line.plain.split())) > console.width)
        console.print()


def _text(console: Console, cell: object) -> Text:
    """A cell; words in one line."""
    if isinstance(cell, Text):
        return cell
    text = console.render_str(cell) if isinstance(cell, str) else Text(str(cell))
    return Text(" ").join(text.split("\n"))
