"""The rule that picks one series of a study: the same every time, with a reason for each of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from retroln.errors import InputError
from retroln.imaging.dicom.choice import SeriesFacts, choose
from retroln.imaging.dicom.describe import phase_of, sharpness_of
from retroln.imaging.dicom.headers import Instance
from retroln.imaging.dicom.study import open_study, pick
from retroln.settings import SeriesRule
from tests.dicom_series import Made, ct_array, lps_grid, rotated, series, write

BEST = SeriesFacts(
    key="best",
    number=5,
    orientation="axial",
    sharpness="soft",
    phase="portal_venous",
    spacing_mm=2.0,
    thickness_mm=2.5,
    coverage_mm=450.0,
    is_original=True,
    slices=225,
)
WORSE = {
    "orientation": {"orientation": "coronal"},
    "kernel": {"sharpness": "sharp"},
    "coverage": {"coverage_mm": 120.0},
    "phase": {"phase": "plain"},
    "thickness": {"thickness_mm": 5.0},
    "original": {"is_original": False},
    "slices": {"slices": 100},
}


@pytest.mark.parametrize("criterion", WORSE)
def test_each_criterion_decides_when_all_else_is_alike(criterion: str) -> None:
    other = replace(BEST, key="other", number=1, **WORSE[criterion])
    for pair in ((BEST, other), (other, BEST)):
        found = choose(pair, SeriesRule())
        assert (found.chosen, found.why) == (BEST, criterion)
        assert list(found.rejected) == ["other"]
        assert found.rejected["other"].startswith(f"{criterion}: ")


def test_criteria_are_asked_in_the_order_of_the_rule() -> None:
    sharp, short = (replace(BEST, key=name, **WORSE[name]) for name in ("kernel", "coverage"))
    assert choose((sharp, short), SeriesRule()).chosen is short
    turned = SeriesRule(order=("coverage", "kernel"))
    assert choose((sharp, short), turned).chosen is sharp


def test_the_rule_is_a_setting() -> None:
    plain = replace(BEST, key="plain", phase="plain")
    assert choose((BEST, plain), SeriesRule(phase="plain")).chosen is plain
    lung = replace(BEST, key="lung", sharpness="sharp")
    assert choose((BEST, lung), SeriesRule(kernel="sharp")).chosen is lung
    thin = replace(BEST, key="thin", spacing_mm=0.6, thickness_mm=0.75)
    assert choose((BEST, thin), SeriesRule()).chosen is BEST
    assert choose((BEST, thin), SeriesRule(thinnest_mm=0.5, thickest_mm=1.0)).chosen is thin


def test_more_than_the_lumbar_range_is_no_better() -> None:
    whole_body = replace(BEST, key="body", coverage_mm=1500.0, slices=BEST.slices)
    found = choose((whole_body, BEST), SeriesRule())
    assert found.why == "the lowest series number"
    head = replace(BEST, key="head", coverage_mm=0.0)
    assert choose((head, BEST), SeriesRule()).why == "coverage"


@given(st.permutations([replace(BEST, key=str(n), number=n % 3, slices=100 + n // 4) for n in range(8)]))
def test_the_choice_does_not_depend_on_the_order(candidates: list[SeriesFacts]) -> None:
    found = choose(candidates, SeriesRule())
    assert found.chosen.key == "6"
    assert set(found.rejected) == {str(n) for n in range(8)} - {"6"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("B30f", "soft"),
        ("B70f", "sharp"),
        ("I41f", "soft"),
        ("Br38f", "soft"),
        ("Bl57d", "sharp"),
        ("Qr40", "soft"),
        ("STANDARD", "soft"),
        ("BONEPLUS", "sharp"),
        ("FC08", "soft"),
        ("FC52", "sharp"),
        ("B", "soft"),
        ("YC", "sharp"),
        ("", "unknown"),
        ("iDose (3)", "unknown"),
    ],
)
def test_kernels_by_their_vendors_names(name: str, expected: str) -> None:
    assert sharpness_of(name) == expected


@pytest.mark.parametrize(
    ("description", "agent", "start", "expected"),
    [
        ("Abdomen portalvenös 2.0", "", "", "portal_venous"),
        ("ABD VENOUS 1.5 B30f", "x", "", "portal_venous"),
        ("Abdomen nativ", "x", "101850", "plain"),
        ("Leber arteriell", "x", "101850", "contrast"),
        ("Abdomen 3.0", "x", "101850", "portal_venous"),  # 70 s after the injection began
        ("Abdomen 3.0", "x", "101940", "contrast"),  # 20 s
        ("Abdomen 3.0", "", "", "unknown"),
    ],
)
def test_phase_by_words_then_delay_then_agent(
    description: str, agent: str, start: str, expected: str
) -> None:
    header = Dataset()
    header.SeriesDescription, header.ContrastBolusAgent = description, agent
    header.AcquisitionTime, header.ContrastBolusStartTime = "102000.0", start
    instance = Instance(Path("x"), header, "", "", "")
    assert phase_of(instance) == expected


def _study(folder: Path) -> None:
    """Soft axial series 3, sharp 4, coronal 5 and a scout 1, as a scanner sends them."""
    array, grid = ct_array(), lps_grid()
    upright = lps_grid(rotation=rotated((90.0, 0.0, 0.0)))
    write(folder, series(array, grid, Made(number=3)), names="soft{}")
    write(folder, series(array, grid, Made(number=4, kernel="Br60f")), names="sharp{}")
    write(folder, series(array, upright, Made(number=5)), names="cor{}")
    scout = series(array, grid, Made(number=1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")))
    write(folder, scout[:1], names="scout{}")


def test_the_soft_axial_series_of_a_study(tmp_path: Path) -> None:
    _study(tmp_path)
    study = open_study(tmp_path.iterdir())
    chosen, choice = pick(study, SeriesRule())
    assert (chosen.number, choice.why) == (3, "kernel")
    reasons = {one.number: choice.rejected.get(one.uid) for one in study.series}
    assert reasons == {
        1: "localizer",
        3: None,
        4: "kernel: sharp kernel; chosen: soft kernel",
        5: "orientation: coronal; chosen: axial",
    }


def test_a_named_series_wins_by_number_or_uid(tmp_path: Path) -> None:
    _study(tmp_path)
    study = open_study(tmp_path.iterdir())
    for wanted in ("4", Made(number=4).series_uid):
        chosen, choice = pick(study, SeriesRule(), wanted=wanted, drawn_on={Made(number=5).series_uid})
        assert (chosen.number, choice.why) == (4, "named in cases.csv")
    with pytest.raises(InputError, match="localizer"):
        pick(study, SeriesRule(), wanted="1")
    with pytest.raises(InputError, match="the study has series 1, 3, 4, 5") as caught:
        pick(study, SeriesRule(), wanted="1.2.3.SMITH")
    assert caught.value.reason == "series_not_found" and "SMITH" not in str(caught.value)


def test_the_series_a_mask_was_drawn_on_comes_before_the_rule(tmp_path: Path) -> None:
    _study(tmp_path)
    chosen, choice = pick(open_study(tmp_path.iterdir()), SeriesRule(), drawn_on={Made(number=4).series_uid})
    assert (chosen.number, choice.why) == (4, "the mask was drawn on it")
