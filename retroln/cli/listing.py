"""What a command lists: tables for people, whole lines for a pipe, JSON for programs; nothing is ever cut."""

from __future__ import annotations

import json
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document with every field.")


def tell_json(content: object) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(content, default=_plain, indent=2))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path | Enum):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def show(*tables: Table) -> None:
    """Print tables: on a terminal within its width, where what is long goes on in the next line.

    Elsewhere a line for each row, with tabs between the cells, under the title and the names of the columns.
    Texts appear as they are: nothing in them is markup, and no letter of theirs moves the cursor.
    """
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    for table in tables:
        title, rows = str(table.title), _rows(table)
        if console.is_terminal:
            console.print(_folding(title, rows))
        else:
            click.echo("\n".join([printable(title), *("\t".join(row) for row in rows)]))


def printable(text: str) -> str:
    """The text with what no line can show (control characters, broken text) written as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def _rows(table: Table) -> list[tuple[str, ...]]:
    """The header, then the rows."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    return list(zip(*([printable(cell) for cell in cells] for cells in columns), strict=True))


def _folding(title: str, rows: list[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    header, *others = rows
    table = Table(title=Text(printable(title), style="table.title"))
    for name in header:
        table.add_column(Text(name), overflow="fold")
    for row in others:
        table.add_row(*map(Text, row))
    return table
