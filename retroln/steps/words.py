"""Who overrules a check of landmarks, and why: with a file tool or on the platform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retroln.errors import NotFoundError, UserError
from retroln.steps.cases_table import Layout, rows

_COLUMNS = ("case_id", "reviewer", "comment")


@dataclass(frozen=True)
class Words:
    """Who decides and why, as it shall stand in the record."""

    reviewer: str
    comment: str

    def complete(self, on: str = "landmarks") -> Words:
        """The same without blanks around it. Raises `UserError` where who or why is missing, naming `on`."""
        if not (self.reviewer.strip() and self.comment.strip()):
            raise UserError(
                f"a word on {on} says who and why",
                expected="a reviewer and a comment",
                got="an empty text",
                fix="give both",
            )
        return Words(self.reviewer.strip(), self.comment.strip())


def read_words(path: Path) -> dict[str, Words]:
    """Words by case id, from a CSV with the columns case_id, reviewer and comment.

    Raises:
        NotFoundError: no such file.
        UserError: not a table of these columns, a line with more cells, two lines for a case, or one that
            does not say who and why.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError("no such file", file=path, fix="check the path") from error
    found: dict[str, Words] = {}
    for row in rows(data, Layout(str(path), _COLUMNS)):
        case_id, reviewer, comment = (row.cells[name] for name in _COLUMNS)
        if row.beyond:
            raise UserError(
                f"line {row.line} has more cells than there are columns",
                file=path,
                expected=",".join(_COLUMNS),
                got=f"{row.beyond} more",
                fix="put a comment that holds the divider into quotes",
            )
        if case_id in found:
            raise UserError(f"two lines for case {case_id}", file=path, fix="keep the one that holds")
        try:
            found[case_id] = Words(reviewer, comment).complete()
        except UserError as error:
            raise error.reworded(file=path, got=f"an empty text in line {row.line}") from error
    return found
