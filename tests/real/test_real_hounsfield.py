"""Real CT is in Hounsfield units, and a wrong scale shows on it (`RETROLN_REAL_DATA`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retroln.anatomy.tissue_hu import overall, problems, tissue_hu
from retroln.anatomy.vertebrae import Vertebrae
from retroln.imaging import nifti
from retroln.imaging.dicom.study import open_study, pick
from retroln.imaging.hounsfield import doubts
from retroln.imaging.volume import Volume
from retroln.settings import LabelScheme, SeriesRule

pytestmark = pytest.mark.skipif(
    not os.environ.get("RETROLN_REAL_DATA"), reason="RETROLN_REAL_DATA is not set"
)
Change = Callable[[NDArray[np.float32]], NDArray[Any]]
LABELS: dict[str, tuple[str, LabelScheme]] = {
    "totalseg_example_ct": ("totalseg_example_vertebrae", "totalseg-v2"),
    "totalseg_example_ct_sm": ("totalseg_example_seg_sm", "totalseg-v2"),
    "tptbox_l3_ct": ("tptbox_l3_vertebrae", "verse"),
}


def _data() -> Path:
    return Path(os.environ["RETROLN_REAL_DATA"])


@cache
def _ct(name: str) -> Volume:
    if name == "dicom_series":
        return pick(open_study((_data() / name).iterdir()), SeriesRule())[0].volume()
    return nifti.read(_data() / f"{name}.nii.gz")


@cache
def _spine(name: str) -> Vertebrae:
    labels, scheme = LABELS[name]
    return Vertebrae.read(_data() / f"{labels}.nii.gz", scheme)


def _faults(name: str, change: Change) -> tuple[bool, bool]:
    """Whether the whole volume shows a fault, and whether the tissues around the vertebrae do."""
    ct = _ct(name).with_array(change(_ct(name).array.astype(np.float32)))
    around = list(problems(tissue_hu(ct, _spine(name)))) if name in LABELS else []
    return bool(list(doubts(ct.array))), bool(around)


SOUND: dict[str, Change] = {
    "as it is": lambda hu: hu,
    "air clipped": lambda hu: np.maximum(hu, -1000),
    "clipped to the network's window": lambda hu: np.clip(hu, -1000, 400),
    "noise of 60 HU": lambda hu: hu + np.random.default_rng(0).normal(0, 60, hu.shape),
    "muscle 35 HU darker": lambda hu: np.where((hu > 0) & (hu < 80), hu - 35, hu),
    "muscle 30 HU brighter": lambda hu: np.where((hu > -20) & (hu < 150), hu + 30, hu),
    "thin bone": lambda hu: np.where((hu > 100) & (hu < 500), hu * 0.35, hu),
    "sclerotic bone": lambda hu: np.where(hu > 120, hu + 500, hu),
    "40 keV": lambda hu: hu * np.select([hu < -300, hu < -30, hu < 80], [1.0, 1.9, 1.4], 2.4),
    "190 keV": lambda hu: hu * np.select([hu < -300, hu < -30, hu < 80], [1.0, 0.72, 1.0], 0.5),
}


@pytest.mark.parametrize("change", SOUND)
@pytest.mark.parametrize("name", [*LABELS, "dicom_series"])
def test_real_ct_passes_however_it_may_have_been_taken(name: str, change: str) -> None:
    assert _faults(name, SOUND[change]) == (False, False)


@pytest.mark.parametrize("shift_hu", [-1024, -1000, -500, -300, 300, 500, 1000, 1024])
@pytest.mark.parametrize("name", [*LABELS, "dicom_series"])
def test_a_large_shift_shows_in_the_whole_volume_and_around_the_vertebrae(name: str, shift_hu: float) -> None:
    assert _faults(name, lambda hu: hu + shift_hu) == (True, name in LABELS)


@pytest.mark.parametrize("shift_hu", [-200, -150, -100, 100, 150, 200])
@pytest.mark.parametrize("name", ["totalseg_example_ct", "totalseg_example_ct_sm"])
def test_a_small_shift_shows_where_muscle_and_fat_are_seen(name: str, shift_hu: float) -> None:
    assert _faults(name, lambda hu: hu + shift_hu)[1]


@pytest.mark.parametrize("window", [(-160, 240), (-150, 250)])
@pytest.mark.parametrize("name", LABELS)
def test_a_display_window_shows_in_the_whole_volume_and_around_the_vertebrae(
    name: str, window: tuple[float, float]
) -> None:
    assert _faults(name, lambda hu: np.clip(hu, *window)) == (True, True)


@pytest.mark.parametrize(
    ("name", "bone", "muscle", "fat"),
    [("totalseg_example_ct", 182, 24, -100), ("tptbox_l3_ct", 162, 35, None)],
)
def test_figures_of_the_tissues_are_as_stated(name: str, bone: int, muscle: int, fat: int | None) -> None:
    told = overall(tissue_hu(_ct(name), _spine(name)))
    assert [None if value is None else round(value) for value in told[:3]] == [bone, muscle, fat]
