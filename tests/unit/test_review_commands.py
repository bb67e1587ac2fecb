"""What `promote`, `reconcile`, `rollback` and `audit` print, on a real (SQLite) MLflow registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from retroln.cli import cli
from retroln.settings import Settings
from tests.stand_in import POOR, approve, register


@pytest.fixture
def said(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """Run a command on the workspace of the `settings` fixture; returns its lines."""
    monkeypatch.setattr("retroln.cli.review.Settings", lambda: settings)

    def run(*arguments: str) -> list[str]:
        found = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert found.exit_code == 0
        return found.output.splitlines()

    return run


def test_a_review_from_approval_to_rollback_in_plain_lines(settings: Settings, tmp_path: Path, said) -> None:
    assert said("reconcile") == ["champion: none"]
    words = ("--reviewer", "Dr A", "--comment", "seen")
    register(settings, tmp_path / "b1")
    assert said("promote", "1", *words)[-1] == "version 1 is champion"
    register(settings, tmp_path / "b2")
    approve(settings, 2, comment=None)
    assert said("reconcile") == [
        "an approval waits: set review.comment to why",
        "champion: version 1 (audit row 1)",
    ]
    approve(settings, 2)
    assert said("reconcile") == [
        "version 2 is promoted (audit row 2)",
        "champion: version 2 (audit row 2)",
    ]
    register(settings, tmp_path / "b3", POOR)
    approve(settings, 3)
    refused, champion = said("reconcile")
    assert refused.startswith("version 3 is refused: version 3 fails its gates: sensitivity_ge10mm: got 0.5")
    assert champion == "champion: version 2 (audit row 2)"
    assert said("rollback", *words) == ["version 1 is champion again"]
    assert said("reconcile") == ["champion: version 1 (audit row 4)"]


def test_audit_shows_the_chain_with_words_and_figures(settings: Settings, tmp_path: Path, said) -> None:
    assert said("audit") == []
    for version in (1, 2):
        register(settings, tmp_path / f"b{version}")
        said("promote", str(version), "--reviewer", "Dr A", "--comment", f"seen {version}")
    shown = said("audit")
    assert shown[0].endswith("Z  promote 1 (before: none, follows nothing)")
    assert shown[3].endswith("Z  promote 2 (before: 1, follows 1)")
    assert shown[4] == "    Dr A: seen 2"
    assert "sensitivity_ge10mm 0.9 (needed at least 0.8)" in shown[5]
    rows = json.loads("\n".join(said("audit", "--json")))
    assert [(row["audit_id"], row["version"], row["follows"]) for row in rows] == [(1, 1, 0), (2, 2, 1)]
    assert rows[1]["gate"]["passed"] is True
    assert rows[1]["at"].endswith("+00:00")


def test_rejection_from_the_shell_needs_no_gates(settings: Settings, tmp_path: Path, said) -> None:
    register(settings, tmp_path / "b1", POOR)
    shown = said("promote", "1", "--reject", "--reviewer", "Dr A", "--comment", "misses nodes")
    assert shown[-1] == "version 1 is rejected"
    assert said("audit")[1] == "    Dr A: misses nodes"
