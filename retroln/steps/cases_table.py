"""Tables such as `cases.csv` as people and spreadsheets write them: rows, whatever divides the cells.

Commas, semicolons (Excel where the comma is the decimal sign) or tabs; capitals and order of the columns'
names do not matter, nor does a byte order mark; UTF-8, or UTF-16 with its mark (Excel's "Unicode text").
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from retroln.errors import UserError

CASES_FILE = "cases.csv"
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Layout:
    """What a table is called in messages, and its columns.

    Attributes:
        required: columns that must be there.
        others: columns that may be.
    """

    file: str
    required: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.required, *self.others)


CASES = Layout(CASES_FILE, ("case_id", "patient_id", "ct"), ("vertebrae", "label_ids", "mask", "series"))


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        line: number of its (last) line, from 1.
        cells: text by column of the layout that the table has, without surrounding blanks.
        beyond: how many cells that are not empty stand behind the last column.
    """

    line: int
    cells: dict[str, str]
    beyond: int = 0


def rows(data: bytes, layout: Layout = CASES) -> list[Row]:
    """The rows below the header; lines without a text are none.

    Raises:
        UserError: no text, no header with the columns that are needed, a column twice, or a quote that is
            left open.
    """
    text = _decoded(data, layout)
    lines = io.StringIO(text, newline=None)
    try:
        if text.count('"') % 2:  # it would swallow the lines below
            raise csv.Error("an odd number of quotes, so one is left open")
        delimiter = _delimiter(lines.readline(), layout)
        lines.seek(0)
        reader = _reader(lines, delimiter)
        columns = _columns(next(reader, []), delimiter, layout)
        return [
            _row(reader.line_num, cells, columns, layout) for cells in reader if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        raise UserError(
            "not a table", file=layout.file, got=str(error), fix="save it as CSV, UTF-8, from a spreadsheet"
        ) from error


def _row(line: int, cells: Sequence[str], columns: Sequence[str], layout: Layout) -> Row:
    named = zip(columns, cells, strict=False)
    texts = {name: text.strip() for name, text in named if name in layout.columns}
    beyond = sum(bool(text.strip()) for text in cells[len(columns) :])
    return Row(line, {**dict.fromkeys(layout.required, ""), **texts}, beyond)


def _decoded(data: bytes, layout: Layout) -> str:
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            "not UTF-8 text", file=layout.file, got=str(error), fix="save it as CSV, UTF-8"
        ) from error


def _reader(lines: Iterable[str], delimiter: str) -> Any:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _delimiter(header: str, layout: Layout) -> str:
    """The one by which the header names most of the columns; a comma where none does."""

    def named(delimiter: str) -> int:
        return len({*layout.columns}.intersection(_names(next(_reader([header], delimiter), []))))

    return max(_DELIMITERS, key=named)


def _names(cells: Sequence[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _columns(cells: Sequence[str], delimiter: str, layout: Layout) -> list[str]:
    columns = _names(cells)
    missing = [name for name in layout.required if name not in columns]
    twice = sorted({name for name in columns if name in layout.columns and columns.count(name) > 1})
    if missing or twice:
        raise UserError(
            "columns are missing" if missing else "a column is there twice",
            file=layout.file,
            expected=",".join(layout.columns),
            got=f"{', '.join(map(repr, cells))}, divided by {_DELIMITERS[delimiter]}"
            if cells
            else "an empty file",
            fix=f"add {', '.join(missing)}" if missing else f"keep one {twice[0]}",
        )
    return columns
