"""Where settings come from, and which place wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from retroln.settings import Settings


def test_a_file_that_is_named_wins_over_dotenv_which_wins_over_the_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "var/stack").mkdir(parents=True)
    (tmp_path / "var/stack/retroln.env").write_text("RETROLN_MODEL_NAME=stack\nRETROLN_EXPERIMENT=stack\n")
    (tmp_path / ".env").write_text("RETROLN_MODEL_NAME=dotenv\n")
    (tmp_path / "own.env").write_text("RETROLN_MODEL_NAME=own\n")
    monkeypatch.delenv("RETROLN_ENV_FILE")
    assert (Settings().model_name, Settings().experiment) == ("dotenv", "stack")
    monkeypatch.setenv("RETROLN_ENV_FILE", "own.env")
    assert (Settings().model_name, Settings().experiment) == ("own", "retroln")
    monkeypatch.setenv("RETROLN_MODEL_NAME", "environment")
    assert Settings().model_name == "environment"
