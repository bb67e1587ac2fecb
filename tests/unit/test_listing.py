"""What commands list: nothing is cut, a pipe gets whole lines, and every listing is JSON on request."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from rich.table import Table

from retroln.cli import cli
from retroln.cli.listing import printable, show
from retroln.settings import Settings
from tests.way import ingest_all

LONG = "WEST-ABDOMEN-PORTAL-2024-FOLLOWUP-VISIT-001"
SAID = "[hidden] [/b] :warning: " + "what was found " * 20 + "end"


@pytest.fixture
def table() -> Table:
    made = Table("case", "what to do", title="Held [b]back")
    made.add_row(LONG, SAID)
    return made


def test_a_pipe_gets_whole_lines(
    table: Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show(table, table)
    assert capsys.readouterr().out == 2 * f"Held [b]back\ncase\twhat to do\n{LONG}\t{SAID}\n"


def test_a_terminal_gets_every_letter_within_its_width(
    table: Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "40"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    show(table)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 40
    cells = [line.split("│")[1:3] for line in lines if line.startswith("│")]
    shown = ["".join(column).replace(" ", "") for column in zip(*cells, strict=True)]
    assert shown == [LONG, SAID.replace(" ", "")]


def test_no_letter_of_a_text_moves_the_cursor() -> None:
    assert printable("a\x1b[2J\tb\nÅ\udce9") == "a\\x1b[2J\\tb\\nÅ\\udce9"


_LISTINGS = (
    ("status",),
    ("review", "list"),
    ("audit",),
    ("weights", "list"),
    ("catalog",),
    ("doctor",),
    ("withdraw", "P", "--dry-run"),
    ("status", "A"),
    ("source", "find", "C-"),
)


@pytest.mark.parametrize("command", _LISTINGS, ids=" ".join)
def test_every_listing_is_json_on_request(
    command: tuple[str, ...], settings: Settings, deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    (deliver("A", "P", ("ct",)) / "ct.nii.gz").write_bytes(b"no image")
    ingest_all(settings)
    for module in ("state", "landmarks_review", "review", "weights", "catalog", "doctor", "withdraw"):
        monkeypatch.setattr(f"retroln.cli.{module}.Settings", lambda: settings)
    monkeypatch.setattr("retroln.cli.source.Settings", lambda: settings)
    monkeypatch.setattr("retroln.steps.source.find", lambda settings, pseudonym: ["P/A/ct.nii.gz"])
    run = CliRunner().invoke(cli, [*command, "--json"])
    assert isinstance(run.exception, SystemExit | None), run.exception
    found = json.loads(run.stdout)
    if command == ("status",):
        (held,) = found["held"]
        assert (held["case_id"], held["state"], held["reason"]) == ("A", "quarantined", "truncated")
        assert found["scans"]["quarantined"] == 1
    elif command == ("status", "A"):
        assert found["scan"]["case_id"] == "A" and [one["to_state"] for one in found["events"]]
