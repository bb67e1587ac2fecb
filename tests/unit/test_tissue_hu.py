"""Bone, muscle and fat around the lumbar vertebrae tell whether a CT is in Hounsfield units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from spine import V2

from retroln.anatomy import landmarks
from retroln.anatomy.landmarks import Ruling, assess
from retroln.anatomy.levels import LUMBAR, Level, Vertebra
from retroln.anatomy.tissue_hu import BONE_HU, FAT_HU, MUSCLE_HU, TissueHu, overall, problems, tissue_hu
from retroln.anatomy.vertebrae import Vertebrae
from retroln.errors import LandmarkError
from retroln.imaging.geometry import Grid, VoxelBox
from retroln.imaging.phantom import Phantom
from retroln.imaging.volume import Volume

Change = Callable[[NDArray[np.float32]], NDArray[Any]]


@pytest.fixture(scope="module")
def spine(phantom: Phantom) -> Vertebrae:
    return Vertebrae.from_label_map(phantom.vertebrae, "totalseg-v2")


def _changed(phantom: Phantom, change: Change) -> Volume:
    return phantom.ct.with_array(change(phantom.ct.array.astype(np.float32)))


def test_every_lumbar_level_of_the_phantom_tells_what_it_was_painted_with(
    phantom: Phantom, spine: Vertebrae
) -> None:
    found = tissue_hu(phantom.ct, spine)
    assert tuple(found) == LUMBAR
    for told in found.values():
        assert told.bone == pytest.approx(215, abs=20)
        assert told.muscle == pytest.approx(55, abs=15)  # attenuation.py: 62 in the portal phase
        assert told.fat == pytest.approx(-104, abs=12)
        assert (told.floor, told.ceiling) == (None, None)


def test_limits_hold_published_values() -> None:
    """The sources are named beside the limits."""
    for value in (42 - 3 * 8, 1.26 * 42 + 3 * 8):
        assert MUSCLE_HU[0] < value < MUSCLE_HU[1]
    for value in (-228, -140, -71, -52):
        assert FAT_HU[0] < value < FAT_HU[1]
    for value in (89 - 3 * 38, 226 + 3 * 44, 1190 + 2 * 239):
        assert BONE_HU[0] < value < BONE_HU[1]


SOUND: dict[str, Change] = {
    "noise of 60 HU": lambda hu: hu + np.random.default_rng(0).normal(0, 60, hu.shape),
    "muscle 35 HU darker": lambda hu: np.where((hu > 0) & (hu < 80), hu - 35, hu),
    "full of contrast": lambda hu: np.where((hu > -20) & (hu < 300), hu + 30, hu),
    "thin bone": lambda hu: np.where((hu > 100) & (hu < 300), hu * 0.35, hu),
    "sclerotic bone": lambda hu: np.where(hu > 120, hu + 500, hu),
    "metal": lambda hu: np.where(hu > 250, 3071, hu),
    "40 keV": lambda hu: hu * np.select([hu < -300, hu < -30, hu < 80], [1.0, 1.9, 1.8], 2.4),
    "190 keV": lambda hu: hu * np.select([hu < -300, hu < -30, hu < 80], [1.0, 0.72, 0.9], 0.5),
    "clipped to the network's window": lambda hu: np.clip(hu, -1000, 400),
    "air set to -1000": lambda hu: np.where(hu < -300, -1000, hu),
}
WRONG: dict[str, tuple[Change, str]] = {
    **{f"{shift:+d}": (lambda hu, by=shift: hu + by, "muscle at -29 to 150") for shift in (-1024, -100, 500)},
    **{f"{shift:+d}": (lambda hu, by=shift: hu + by, "fat at -240 to -30") for shift in (100, 150, 1024)},
    "window -160..240": (lambda hu: np.clip(hu, -160, 240), "none below -160, none above 240"),
    "window -100..400": (lambda hu: np.clip(hu, -100, 400), "none below -100"),
    "a ceiling of 210": (lambda hu: np.minimum(hu, 210), "none above 210"),
    "MR": (lambda hu: 900 * np.clip((hu + 1000) / 1000, 0, 2), "muscle at -29 to 150"),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_ct_in_hu_passes(phantom: Phantom, spine: Vertebrae, name: str) -> None:
    assert list(problems(tissue_hu(_changed(phantom, SOUND[name]), spine))) == []


@pytest.mark.parametrize("name", WRONG)
def test_other_units_are_refused_with_what_was_expected_and_found(
    phantom: Phantom, spine: Vertebrae, name: str
) -> None:
    change, said = WRONG[name]
    with pytest.raises(LandmarkError) as caught:
        assess(spine, unanchored="accept", ct=_changed(phantom, change))
    assert caught.value.reason == "not_hu"
    assert said in f"{caught.value.expected}; {caught.value.got}"


def test_a_child_of_half_the_size_tells_the_same(phantom: Phantom, spine: Vertebrae) -> None:
    small = Grid(spine.grid.shape, spine.grid.affine @ np.diag([0.5, 0.5, 0.5, 1.0]))
    told = overall(tissue_hu(Volume(phantom.ct.array, small, small), replace(spine, grid=small)))
    grown = overall(tissue_hu(phantom.ct, spine))
    assert told == pytest.approx(grown, abs=5)


def test_what_is_not_there_is_untold_and_holds_nothing(phantom: Phantom, spine: Vertebrae) -> None:
    noise = np.random.default_rng(0).integers(-900, 900, spine.grid.shape)
    found = assess(
        spine, unanchored="accept", ct=phantom.ct.with_array(noise), ruling=Ruling("A", "why", accepted=True)
    )
    assert (found.tissue_hu.muscle, found.tissue_hu.fat) == (None, None)
    assert not [finding for finding in found.findings if "Hounsfield" in finding]
    assert found.per_level["L2"]["muscle_hu"] is None
    without = assess(spine, unanchored="accept")
    assert without.tissue_hu == TissueHu(None, None, None)
    assert "bone_hu" not in without.per_level["L2"]


def test_a_sliver_of_a_level_clips_nothing(phantom: Phantom, spine: Vertebrae) -> None:
    """Where the field of view ends within a level, a few voxels have its highest value."""
    kept, level = spine.to_label_map(), V2[Level.L5]
    l5 = np.flatnonzero((kept == level).any(axis=(0, 1)))
    kept[:, :, l5[:-1]][kept[:, :, l5[:-1]] == level] = 0
    cut = Vertebrae.from_label_map(phantom.vertebrae.with_array(kept), "totalseg-v2")
    assert list(problems(tissue_hu(phantom.ct, cut))) == []


def test_a_scan_too_small_for_a_block_tells_its_bone_alone(phantom: Phantom) -> None:
    fine = Grid((3, 3, 3), np.diag([0.5, 0.5, 0.5, 1.0]))
    place = VoxelBox((1, 1, 1), (2, 2, 2))
    spine = Vertebrae(fine, {Level.L2: Vertebra(Level.L2, place, np.ones((1, 1, 1), bool))}, 0, fine)
    ct = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    assert tissue_hu(Volume(ct, fine, fine), spine)[Level.L2][:3] == (13.0, None, None)


def test_a_person_overrules_it_by_accepting_and_by_nothing_else(phantom: Phantom, spine: Vertebrae) -> None:
    ct, extent = _changed(phantom, lambda hu: hu + 100), (-100.0, 100.0)
    found = assess(spine, unanchored="review", ct=ct, ruling=Ruling("Dr A", accepted=True))
    assert [one for one in found.findings if one.startswith("accepted: the CT is not in Hounsfield units")]
    for ruling in (Ruling("Dr A"), Ruling("Dr A", l2_world_mm=(0.0, 0.0, 0.0), extent_world_mm=extent)):
        with pytest.raises(LandmarkError) as caught:
            assess(spine, unanchored="review", ct=ct, ruling=ruling)
        assert caught.value.reason == "not_hu"


def test_labels_beside_the_bone_are_not_called_a_wrong_ct(phantom: Phantom) -> None:
    moved = phantom.vertebrae.with_array(np.roll(phantom.vertebrae.array, 24, axis=1))
    with pytest.raises(LandmarkError) as caught:
        assess(Vertebrae.from_label_map(moved, "totalseg-v2"), unanchored="accept", ct=phantom.ct)
    assert caught.value.reason == "off_bone"


def test_what_was_refused_is_on_account(phantom: Phantom, spine: Vertebrae) -> None:
    ct = _changed(phantom, lambda hu: hu + 100)
    with pytest.raises(LandmarkError) as caught:
        assess(spine, unanchored="accept", ct=ct)
    account = landmarks.account_of(spine, caught.value, ct)
    assert account.findings[-1].startswith("not_hu: the CT is not in Hounsfield units")
    assert account.confidence == 0.1
    assert account.per_level["L3"]["fat_hu"] == pytest.approx(-4, abs=12)
