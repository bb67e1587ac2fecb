"""Records of headers: only what the keep-list names, rebuilt, and described on its page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from retroln.imaging.dicom.deidentify import KnownAs, series_record
from retroln.imaging.dicom.kept import KEPT
from retroln.imaging.dicom.study import open_study, pick
from retroln.pseudonyms import Pseudonyms
from retroln.settings import SeriesRule
from tests.dicom_series import KEY, ct_array, lps_grid, series, write

ADDED = {
    "PatientIdentityRemoved",
    "LongitudinalTemporalInformationModified",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
}


def _record(folder: Path, datasets: list[Dataset]) -> dict[str, Any]:
    write(folder, datasets)
    study = open_study(folder.iterdir())
    found, choice = pick(study, SeriesRule())
    return series_record(study, found, choice, KnownAs(Pseudonyms.under(KEY), "P-1"))


def test_nothing_but_the_keep_list(tmp_path: Path) -> None:
    (first, *_) = _record(tmp_path, series(ct_array(), lps_grid()))["instances"]
    found = {Dataset.from_json({tag: element}).dir()[0] for tag, element in first.items()}
    assert found == {kept.keyword for kept in KEPT} - {"NumberOfFrames"} | ADDED


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "stored"),
    [
        ("StudyDate", "DA", "20240230", None),
        ("SeriesDate", "DA", "20240230", None),
        ("ConvolutionKernel", "SH", "SMITH", None),
        ("ConvolutionKernel", "SH", "B30f", "B30f"),
        ("KVP", "DS", "120", 120.0),
        ("PatientPosition", "CS", "SMITH", None),
        ("ImageType", "CS", ["ORIGINAL", "SMITH", "AXIAL"], ["ORIGINAL", "AXIAL"]),
        ("ContrastBolusAgent", "LO", "SMITH 100 ml", "CONTRAST"),
        ("ContrastBolusAgent", "LO", "", None),
        ("PatientSex", "CS", "F", None),
        ("SeriesNumber", "IS", "3", 3),
    ],
)
def test_odd_values_are_not_kept(tmp_path: Path, keyword: str, vr: str, value: Any, stored: Any) -> None:
    datasets = series(ct_array(), lps_grid())
    for one in datasets:
        if keyword in one:
            del one[keyword]
        one.add_new(keyword, vr, value)
    content = _record(tmp_path, datasets)
    element = content["instances"][0].get(f"{Tag(keyword):08X}", {})
    shown = element.get("Value")
    assert (shown if isinstance(stored, list) or shown is None else shown[0]) == stored
    assert "SMITH" not in json.dumps(content)


def test_numbers_keep_every_digit(tmp_path: Path) -> None:
    datasets = series(ct_array(), lps_grid(spacing_mm=(0.78125, 0.1234567891, 1.25)))
    written = datasets[0].PixelSpacing
    content = _record(tmp_path, datasets)
    back = Dataset.from_json(content["instances"][0])
    assert [str(value) for value in back.PixelSpacing] == [str(value) for value in written]


def test_the_page_states_the_profile_of_every_attribute_that_is_kept() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "deidentification.md").read_text()
    stated = {}
    for names, profile, option in re.findall(r"^\| (`[^|]+`) \|([^|]+)\|([^|]*)\|[^|]+\|$", page, re.M):
        for name in re.findall(r"`([A-Z][A-Za-z]+)`", names):
            stated[name] = (profile.strip().replace("not listed", "-"), option.strip())
    assert stated == {kept.keyword: (kept.profile, kept.option) for kept in KEPT}
