"""Landmarks: the ladder, the border, and what a person must look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from spine import V2, grid_ras, spine, spine_labels

from retroln.anatomy.landmarks import L2Reference, assess, reference_of
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level, Vertebrae
from retroln.errors import LandmarkError
from retroln.imaging.volume import Volume

Labels = NDArray[np.uint8]
NO_S1 = LEVEL_ORDER[:-1]


def _without(*levels: Level) -> Labels:
    return spine_labels(levels=tuple(level for level in LEVEL_ORDER if level not in levels))


def test_faultless_spine() -> None:
    found = assess(spine(), unanchored="review")
    assert (found.rung, found.anchored, found.truncated, found.findings) == ("l2", True, (), ())
    assert found.l2 == L2Reference(45, 52, 18, 29.5)
    assert found.levels == LEVEL_ORDER[1:7]
    assert found.per_level["L2"]["volume_mm3"] == 12 * 10 * 8 * 48
    assert found.per_level["L2"]["centroid_world_mm"] == [-100 + 29.5 * 4, -50 + 13.5 * 4, 20 + 48.5 * 3]


def test_reference_takes_only_the_middle_slices() -> None:
    labels = spine_labels()
    labels[24:36, 19:30, 45] = V2[Level.L2]  # an osteophyte on the lowest slice
    labels[36:40, 9:19, 52] = V2[Level.L2]  # a process on the highest
    assert reference_of(spine(labels).levels[Level.L2]) == (45, 52, 18, 29.5)


def test_reference_is_the_median_over_slices() -> None:
    labels = spine_labels()
    # slices lo+int(0.25*7)=46 to lo+int(0.75*7)=50; three of five reach two voxels further
    labels[24:36, 19:21, 46:49] = V2[Level.L2]
    assert reference_of(spine(labels).levels[Level.L2]).margin_index == 20


def test_l2_missing_is_interpolated_from_l1_and_l3() -> None:
    found = assess(spine(_without(Level.L2)), unanchored="accept")
    assert found.rung == "interpolated_l1_l3"
    assert found.l2 == L2Reference(45, 52, 18, 29.5)
    assert any(finding.startswith("interpolated_l1_l3:") for finding in found.findings)


def test_l1_and_l2_missing_is_extrapolated_from_l3_and_l4() -> None:
    found = assess(spine(_without(Level.L1, Level.L2)), unanchored="accept")
    assert found.rung == "extrapolated"
    assert found.l2 == pytest.approx((45, 52, 18, 29.5))


def test_fused_l2_l3_is_not_taken_for_l2() -> None:
    labels = spine_labels()
    labels[24:36, 9:19, 42:45] = V2[Level.L2]
    labels[labels == V2[Level.L3]] = V2[Level.L2]
    found = assess(spine(labels), unanchored="accept")
    assert found.rung == "extrapolated"
    assert "implausible: L2 does not have the size of a vertebra" in found.findings


def test_fragment_of_l2_is_not_taken_for_l2() -> None:
    labels = _without(Level.L2)
    labels[29:31, 12:14, 48] = V2[Level.L2]
    assert assess(spine(labels), unanchored="accept").rung == "interpolated_l1_l3"


def _cropped(lo: int, hi: int, axis: int = 2) -> Vertebrae:
    labels = np.take(spine_labels(), range(lo, hi), axis=axis)
    place = grid_ras(labels.shape)
    return Vertebrae.from_label_map(Volume(labels, place, place), "totalseg-v2")


def test_t12_cut_or_absent_passes_as_truncated() -> None:
    cut = assess(_cropped(0, 72), unanchored="accept")
    assert cut.truncated == (Level.T12,)
    assert cut.findings == ("cut: T12 touches the superior border",)
    absent = assess(_cropped(0, 66), unanchored="accept")
    assert absent.truncated == (Level.T12,)
    assert absent.findings == ("absent: T12 is not labelled",)


def test_l2_cut_by_the_border_is_unresolved() -> None:
    with pytest.raises(LandmarkError) as caught:
        assess(_cropped(26, 50), unanchored="accept")  # L3 whole, L4 and L2 cut
    assert caught.value.reason == "l2_unresolved"


def test_l2_cut_by_the_front_border_steps_down() -> None:
    found = assess(_cropped(0, 19, axis=1), unanchored="accept")  # L2's front row is the last; L1's is gone
    assert found.rung == "extrapolated"
    assert found.l2.margin_index == pytest.approx(18)


def test_missing_spinous_processes_do_not_spoil_l2() -> None:
    found = assess(_cropped(9, 60, axis=1), unanchored="accept")
    assert found.rung == "l2"
    assert found.l2.margin_index == 18 - 9


def test_numbering_without_anchor_is_recorded_or_reviewed() -> None:
    labels = spine_labels(levels=NO_S1)
    found = assess(spine(labels), unanchored="accept")
    assert not found.anchored
    assert found.findings == ("unanchored: neither S1 nor ribs confirm the numbering",)
    with pytest.raises(LandmarkError) as caught:
        assess(spine(labels), unanchored="review")
    assert caught.value.reason == "unanchored"


def _swapped(labels: Labels) -> Labels:
    l3, l4 = labels == V2[Level.L3], labels == V2[Level.L4]
    labels[l3], labels[l4] = V2[Level.L4], V2[Level.L3]
    return labels


def _upside_down(labels: Labels) -> Labels:
    return labels[:, :, ::-1]


def _swollen(labels: Labels) -> Labels:
    labels[4:56, 8:58, 23:31] = V2[Level.L4]
    return labels


def _speck(labels: Labels) -> Labels:
    labels[labels == V2[Level.L4]] = 0
    labels[29, 12, 26] = V2[Level.L4]
    return labels


def _stray(labels: Labels) -> Labels:
    labels[2, 2, 88] = V2[Level.L5]
    return labels


def _renumbered(labels: Labels) -> Labels:
    labels[labels == V2[Level.L4]] = 0
    labels[labels == V2[Level.L5]] = V2[Level.L4]
    return labels


@pytest.mark.parametrize("spoil", [_swapped, _upside_down, _swollen, _speck, _stray, _renumbered])
def test_implausible_spine_is_refused(spoil: Callable[[Labels], Labels]) -> None:
    with pytest.raises(LandmarkError) as caught:
        assess(spine(spoil(spine_labels())), unanchored="accept")
    assert caught.value.reason == "landmarks_implausible"


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_absurd_spacing_is_refused(factor: float) -> None:
    place = grid_ras(spacing_mm=(4 * factor, 4 * factor, 3 * factor))
    with pytest.raises(LandmarkError) as caught:
        assess(spine(grid=place), unanchored="accept")
    assert caught.value.reason == "landmarks_implausible"


def test_overlapping_levels_are_refused() -> None:
    whole = spine()
    claimed = Vertebrae(whole.grid, whole.levels, 12 * 10 * 8, whole.source)
    with pytest.raises(LandmarkError, match="overlap"):
        assess(claimed, unanchored="accept")


@pytest.mark.parametrize("levels", [(), (Level.T11, Level.T12), (Level.S1,)])
def test_no_lumbar_level_is_refused(levels: tuple[Level, ...]) -> None:
    with pytest.raises(LandmarkError) as caught:
        assess(spine(spine_labels(levels=levels)), unanchored="accept")
    assert caught.value.reason == "no_lumbar_level"


def test_l2_alone_is_enough_and_shows_what_is_missing() -> None:
    found = assess(spine(spine_labels(levels=(Level.L2,))), unanchored="accept")
    assert found.rung == "l2"
    assert found.truncated == (Level.T12, Level.L1, Level.L3, Level.L4, Level.L5)
