"""Who overrules a check of landmarks, and why: with a file tool or on the platform."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from retroln.errors import NotFoundError, UserError

_COLUMNS = ("case_id", "reviewer", "comment")


@dataclass(frozen=True)
class Words:
    """Who decides and why, as it shall stand in the record."""

    reviewer: str
    comment: str

    def complete(self) -> Words:
        """The same without blanks around it. Raises `UserError` where who or why is missing."""
        if not (self.reviewer.strip() and self.comment.strip()):
            raise UserError(
                "a word on landmarks says who and why",
                expected="a reviewer and a comment",
                got="an empty text",
                fix="give both",
            )
        return Words(self.reviewer.strip(), self.comment.strip())


def read_words(path: Path) -> dict[str, Words]:
    """Words by case id, from a CSV with the columns case_id, reviewer and comment.

    Raises:
        NotFoundError: no such file.
        UserError: a column is missing, a case has two lines, or one that does not say who and why.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8-sig")))
    except FileNotFoundError as error:
        raise NotFoundError("no such file", file=path, fix="check the path") from error
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8", file=path, got=str(error), fix="save it as CSV in UTF-8") from error
    columns = reader.fieldnames or ()
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise UserError(
            "columns are missing",
            file=path,
            expected=",".join(_COLUMNS),
            got=",".join(columns) or "an empty file",
            fix=f"add {', '.join(missing)}",
        )
    found: dict[str, Words] = {}
    for row in reader:
        case_id = (row["case_id"] or "").strip()
        if case_id in found:
            raise UserError(f"two lines for case {case_id}", file=path, fix="keep the one that holds")
        try:
            found[case_id] = Words(row["reviewer"] or "", row["comment"] or "").complete()
        except UserError as error:
            raise error.reworded(file=path, got=f"an empty text in line {reader.line_num}") from error
    return found
