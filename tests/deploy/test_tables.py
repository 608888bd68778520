"""Tables fit the terminal, and none of their words is broken."""

import re
from io import StringIO
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tessera.deploy.api.tables import print_table

ROOT = Path(__file__).parents[2]
WORD = st.text("abcdefgh", min_size=1, max_size=30)
CELL = st.lists(WORD, max_size=5).map(" ".join)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 7).flatmap(lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n), min_size=1, max_size=4)),
       st.sampled_from([40, 80, 120]), st.sampled_from([None, SIMPLE_HEAD]), st.booleans())  # fmt: skip
def test_no_word_is_broken_and_lines_fit(rows: list[list[str]], width: int, box, edge: bool) -> None:
    console = Console(file=StringIO(), width=width, highlight=False)
    table = Table(*(f"head{n}" for n in range(len(rows[0]))), box=box, pad_edge=edge, title="what it is")
    for row in rows:
        table.add_row(*row)
    print_table(console, table)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    words = said.split()
    for row in rows:
        for word in " ".join(row).split():
            assert word in words
    assert max(map(len, said.splitlines())) <= width


def test_a_narrow_terminal_gets_the_rows_one_below_the_other() -> None:
    console = Console(file=StringIO(), width=40, highlight=False)
    table = Table("key", "", "size\n@10", title="[bold]keys")
    table.add_row("SHA256:" + "x" * 43, "", "[bold]7[/]")
    print_table(console, table)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said == "keys\nkey: SHA256:" + "x" * 43 + "\nsize @10: 7\n\n"


def test_every_command_prints_its_tables_so() -> None:
    """Whoever makes a table of rich's hands it to `print_table`."""
    made = [
        path for path in [*(ROOT / "deploy").rglob("*.py"), ROOT / "benchmarks" / "cli.py"] if path.name != "tables.py"
    ]
    assert [path for path in made if re.search(r"\.print\([^\n]*\b\w*table\b", path.read_text())] == []
