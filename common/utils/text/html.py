"""Writes tables as HTML for notebooks; whatever is shown is escaped."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """A table with a title above and, where there is one, a note below. Numbers stand on the right."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    below = f"<div>{escape(note)}</div>" if note else ""
    return f"<div><b>{escape(title)}</b></div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td style="text-align:right">{value:.2f}</td>'
    side = ' style="text-align:right"' if isinstance(value, int) else ' style="text-align:left"'
    return f"<td{side}>{escape(str(value))}</td>"
