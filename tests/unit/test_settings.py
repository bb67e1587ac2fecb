"""Where settings come from, and which place wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from retroln.errors import SettingsError
from retroln.settings import Hu, Settings, misspelt


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


@pytest.mark.parametrize(("low", "high"), [("500", "400"), ("400", "400"), ("nan", "400"), ("-inf", "400")])
def test_a_window_whose_low_is_not_below_its_high_is_refused(
    monkeypatch: pytest.MonkeyPatch, low: str, high: str
) -> None:
    monkeypatch.setenv("RETROLN_HU__LOW", low)
    monkeypatch.setenv("RETROLN_HU__HIGH", high)
    with pytest.raises(SettingsError, match=r"^RETROLN_HU__\.\.\. .*LOW must be below HIGH, got") as caught:
        Settings()
    assert "Value error" not in str(caught.value)


def test_one_end_of_the_window_is_compared_with_the_others_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROLN_HU__LOW", "500")
    with pytest.raises(SettingsError, match="LOW must be below HIGH, got 500 400"):
        Settings()
    monkeypatch.setenv("RETROLN_HU__HIGH", "600")
    assert Settings().hu == Hu(low=500, high=600)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("RETROLN_GATES__MIN_SENSITIVTY_GE10MM", "RETROLN_GATES__MIN_SENSITIVITY_GE10MM"),
        ("RETROLN_ROI__AHEAD", "RETROLN_ROI__AHEAD_MM"),
        ("RETROLN_HU__HIHG", "RETROLN_HU__HIGH"),
        ("RETROLN_SERIES__KERNAL", "RETROLN_SERIES__KERNEL"),
        ("RETROLN_TOTALSEG__WEIGHT", "RETROLN_TOTALSEG__WEIGHTS"),
    ],
)
def test_a_misspelt_field_of_a_group_is_refused_and_the_nearest_named(
    monkeypatch: pytest.MonkeyPatch, misspelt: str, meant: str
) -> None:
    monkeypatch.setenv(misspelt, "0.9")
    with pytest.raises(SettingsError, match=f"^{misspelt} is no setting; expected: {meant}; fix: "):
        Settings()


def test_names_that_look_like_a_setting_are_told_from_those_that_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "RETROLN_STACK_PORT",
        "RETROLN_MLFLOW_PASSWORD_FILE",
        "RETROLN_REAL_DATA",
        "RETROLN_HU__LOW",
    ):
        monkeypatch.setenv(name, "1")
    assert misspelt() == {}
    (tmp_path / "own.env").write_text("export RETROLN_ROI_AHEAD_MM=160\n# RETROLN_PROCESES=8\n")
    monkeypatch.setenv("RETROLN_ENV_FILE", str(tmp_path / "own.env"))
    monkeypatch.setenv("RETROLN_LABELID", "verse")
    assert misspelt() == {
        "RETROLN_LABELID": "RETROLN_LABEL_IDS",
        "RETROLN_ROI_AHEAD_MM": "RETROLN_ROI__AHEAD_MM",
    }
