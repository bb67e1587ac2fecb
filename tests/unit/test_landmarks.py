"""Landmarks: the ladder, the border, and what a person must look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from spine import V2, grid_ras, spine, spine_labels

from retroln.anatomy.landmarks import Assessment, L2Reference, Ruling, account_of, assess, reference_of
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level, Vertebrae
from retroln.errors import LandmarkError
from retroln.imaging.volume import Volume

Labels = NDArray[np.uint8]
UNANCHORED = "unanchored: neither a sacral S1 nor ribs confirm the numbering"


def _with_rib(found: Vertebrae) -> Vertebrae:
    """Blocks have no shape that could confirm their names; a rib can."""
    return replace(found, rib_12=Level.T12)


def _without(*levels: Level) -> Labels:
    return spine_labels(levels=tuple(level for level in LEVEL_ORDER if level not in levels))


def test_faultless_spine() -> None:
    found = assess(_with_rib(spine()), unanchored="review")
    assert (found.rung, found.anchored, found.truncated, found.findings) == ("l2", True, (), ())
    assert found.confidence == 1.0
    assert found.l2 == L2Reference(45, 52, 18, 29.5)
    assert found.levels == LEVEL_ORDER[1:7]
    assert found.per_level["L2"]["volume_mm3"] == 12 * 10 * 8 * 48
    assert found.per_level["L2"]["height_mm"] == 8 * 3
    assert found.per_level["L2"]["to_next_mm"] == pytest.approx(np.hypot(11 * 3, 4), abs=1e-3)
    assert found.per_level["S1"]["to_next_mm"] is None
    assert found.per_level["L2"]["drift_mm"] == 0
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
    assert "implausible: L2 does not have the size of one solid vertebra" in found.findings


def test_fragment_of_l2_is_not_taken_for_l2() -> None:
    labels = _without(Level.L2)
    labels[29:31, 12:14, 48] = V2[Level.L2]
    assert assess(spine(labels), unanchored="accept").rung == "interpolated_l1_l3"


def _cropped(lo: int, hi: int, axis: int = 2) -> Vertebrae:
    labels = np.take(spine_labels(), range(lo, hi), axis=axis)
    place = grid_ras(labels.shape)
    return Vertebrae.from_label_map(Volume(labels, place, place), "totalseg-v2")


def test_t12_cut_or_absent_passes_as_truncated() -> None:
    cut = assess(_with_rib(_cropped(0, 72)), unanchored="accept")
    assert cut.truncated == (Level.T12,)
    assert cut.findings == ("cut: T12 touches the superior border",)
    absent = assess(_with_rib(_cropped(0, 66)), unanchored="accept")
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
    found = assess(spine(), unanchored="accept")
    assert not found.anchored
    assert found.findings == (UNANCHORED,)
    with pytest.raises(LandmarkError) as caught:
        assess(spine(), unanchored="review")
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


def _in_halves(labels: Labels) -> Labels:
    labels[29:31, :, 23:31] = 0  # a gap through L4, two voxels wide
    return labels


def _aside(labels: Labels) -> Labels:
    moved = labels == V2[Level.L4]
    labels[moved] = 0
    labels[np.roll(moved, 8, axis=0)] = V2[Level.L4]  # 32 mm to the right
    return labels


def _skipped(labels: Labels) -> Labels:
    """L3's vertebra is called L4 and so on: L2 and L4 lie one vertebra apart."""
    for called, really in ((Level.S1, Level.L5), (Level.L5, Level.L4), (Level.L4, Level.L3)):
        labels[labels == V2[called]] = 0
        labels[labels == V2[really]] = V2[called]
    return labels


def _renumbered(labels: Labels) -> Labels:
    labels[labels == V2[Level.L4]] = 0
    labels[labels == V2[Level.L5]] = V2[Level.L4]
    return labels


@pytest.mark.parametrize(
    "spoil", [_swapped, _upside_down, _swollen, _speck, _in_halves, _aside, _skipped, _renumbered]
)
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
    for place in ("--label-ids", "RETROLN_LABEL_IDS", "the column label_ids"):
        assert place in str(caught.value.fix)


def test_stray_pieces_are_left_out_counted_and_told() -> None:
    labels = spine_labels()
    labels[2:4, 2:4, 80:86] = V2[Level.L2]  # 24 voxels far above, in one piece
    labels[50, 50, 5] = V2[Level.L2]
    found = assess(spine(labels), unanchored="accept")
    assert found.l2 == L2Reference(45, 52, 18, 29.5)
    assert found.per_level["L2"]["voxels"] == 960
    assert found.per_level["L2"]["fragments"] == {
        "count": 2,
        "voxels": 25,
        "share": pytest.approx(25 / 985, abs=1e-5),
    }
    assert found.findings == ("fragments: L2 has 2 stray pieces, 2.5% of its voxels, left out", UNANCHORED)
    assert found.slices == (12, 75)
    labels[50, 50, 5] = 0
    one = assess(spine(labels), unanchored="accept").findings[0]
    assert one == "fragments: L2 has 1 stray piece, 2.4% of its voxels, left out"


def test_l2_in_pieces_is_not_taken_for_l2() -> None:
    labels = spine_labels()
    labels[29:31, :, 45:53] = 0
    found = assess(spine(labels), unanchored="accept")
    assert found.rung == "interpolated_l1_l3"


def test_a_rib_elsewhere_contradicts_the_names() -> None:
    with pytest.raises(LandmarkError, match="the 12th rib starts at L1") as caught:
        assess(replace(spine(), rib_12=Level.L1), unanchored="accept")
    assert caught.value.reason == "numbering_doubtful"


def test_a_bent_spine_is_not_beside_itself() -> None:
    """A thoracolumbar scoliosis: 25 mm to the side over seven levels, in an arc."""
    labels = spine_labels()
    for level, right in zip(LEVEL_ORDER, (0, 3, 5, 6, 6, 5, 3, 0), strict=True):
        moved = labels == V2[level]
        labels[moved] = 0
        labels[np.roll(moved, right, axis=0)] = V2[level]
    assert assess(spine(labels), unanchored="accept").rung == "l2"


def test_acceptance_lets_an_implausible_spine_pass_and_says_so() -> None:
    swollen = spine(_swollen(spine_labels()))
    found = assess(swollen, unanchored="review", ruling=Ruling("Dr A", accepted=True))
    assert (found.rung, found.anchored) == ("l2", True)
    assert Level.L4 in found.levels
    assert "reviewed: the landmarks were accepted by Dr A" in found.findings
    assert any(finding.startswith("accepted: L4 does not have the size") for finding in found.findings)


def test_acceptance_takes_a_cut_l2_as_labelled() -> None:
    found = assess(_cropped(26, 50), unanchored="review", ruling=Ruling("Dr A", accepted=True))
    assert found.rung == "l2"
    assert found.findings[-1].startswith("accepted: L2 cannot be used and fewer than two other lumbar levels")


@pytest.mark.parametrize("levels", [(), (Level.T11, Level.T12), (Level.L4,)])
def test_acceptance_makes_no_landmarks(levels: tuple[Level, ...]) -> None:
    with pytest.raises(LandmarkError) as caught:
        assess(spine(spine_labels(levels=levels)), unanchored="accept", ruling=Ruling("Dr A", accepted=True))
    assert caught.value.reason in ("no_lumbar_level", "l2_unresolved")


def test_a_corrected_map_confirms_the_numbering_and_is_still_checked() -> None:
    renamed = replace(spine(), rib_12=Level.L1)
    assert assess(renamed, unanchored="review", ruling=Ruling("Dr A")).anchored
    with pytest.raises(LandmarkError) as caught:
        assess(spine(_swollen(spine_labels())), unanchored="review", ruling=Ruling("Dr A"))
    assert caught.value.reason == "landmarks_implausible"


def test_l2_placed_by_hand_gives_margin_and_centre() -> None:
    without = spine(_without(Level.L2))
    point = tuple(without.grid.world_mm(np.array([29.5, 18, 48.5])))
    found = assess(without, unanchored="review", ruling=Ruling("Dr A", l2_world_mm=point))
    assert found.rung == "reviewer"
    assert found.l2 == pytest.approx((48.5, 48.5, 18, 29.5))
    assert found.slices == (12, 75)
    assert found.truncated == ()


@pytest.mark.parametrize("voxel", [(29.5, 59, 48.5), (2, 18, 48.5)], ids=["in front", "beside"])
def test_a_point_beside_the_spine_is_refused(voxel: tuple[float, float, float]) -> None:
    x, y, z = spine().grid.world_mm(np.array(voxel))
    bottom, top = (float(spine().grid.world_mm(np.array([0, 0, k]))[2]) for k in (12, 74))
    ruling = Ruling("Dr A", l2_world_mm=(x, y, z), extent_world_mm=(bottom, top))
    with pytest.raises(LandmarkError, match="the point given for L2 lies beside the spine"):
        assess(spine(), unanchored="review", ruling=ruling)


@pytest.mark.parametrize(
    ("up", "said"), [(0, []), (11, ["1.0 vertebrae above"]), (-22, ["2.0 vertebrae below"])]
)
def test_names_that_a_person_contradicts_are_set_aside(up: int, said: list[str]) -> None:
    x, y, z = spine().grid.world_mm(np.array([29.5, 18, 48.5 + up]))
    bottom, top = (float(spine().grid.world_mm(np.array([0, 0, k + up]))[2]) for k in (12, 74))
    ruling = Ruling("Dr A", l2_world_mm=(x, y, z), extent_world_mm=(bottom, top))
    findings = assess(spine(), unanchored="review", ruling=ruling).findings
    found = [one for one in findings if one.startswith("names_set_aside: L2 was placed")]
    assert [one.split("placed ", 1)[1].removesuffix(" what they call L2") for one in found] == said


def _by_hand(vertebrae: Vertebrae, voxel: tuple[float, float, float]) -> Assessment:
    x, y, z = vertebrae.grid.world_mm(np.array(voxel))
    ends = (float(vertebrae.grid.world_mm(np.array([0, 0, k]))[2]) for k in (12, 74))
    ruling = Ruling("Dr A", l2_world_mm=(x, y, z), extent_world_mm=tuple(ends))
    return assess(vertebrae, unanchored="review", ruling=ruling)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.where(spine_labels() == V2[Level.L2], V2[Level.L4], 0), "L2 was placed on what they call L4"),
        (_swollen(spine_labels()), "they break a check, "),
    ],
    ids=["one level under another name", "a level that is none"],
)
def test_names_of_labels_that_cannot_say_where_l2_is_reach_no_node(
    labels: NDArray[np.uint8], said: str
) -> None:
    (found,) = [one for one in _by_hand(spine(labels), (29.5, 18, 48.5)).findings if "set_aside" in one]
    assert found.startswith(f"names_set_aside: {said}")


def test_a_point_beside_a_spine_that_breaks_a_check_is_refused() -> None:
    labels = spine_labels()
    swapped = labels.copy()
    swapped[labels == V2[Level.L4]], swapped[labels == V2[Level.L5]] = V2[Level.L5], V2[Level.L4]
    with pytest.raises(LandmarkError, match="beside the spine"):
        _by_hand(spine(swapped), (2, 18, 48.5))


def test_l2_and_extent_by_hand_need_no_label_at_all() -> None:
    empty = spine(spine_labels(levels=()))
    x, y, z = empty.grid.world_mm(np.array([29.5, 18, 48.5]))
    bottom, top = (float(empty.grid.world_mm(np.array([0, 0, k]))[2]) for k in (12, 74))
    with pytest.raises(LandmarkError, match="--extent"):
        assess(empty, unanchored="accept", ruling=Ruling("Dr A", l2_world_mm=(x, y, z)))
    ruling = Ruling("Dr A", l2_world_mm=(x, y, z), extent_world_mm=(bottom, top))
    found = assess(empty, unanchored="review", ruling=ruling)
    assert (found.slices, found.levels, found.anchored) == ((12, 75), (), True)
    assert found.truncated == ()
    assert found.findings[0] == "reviewed: L2 and the ends of T12-L5 were placed by Dr A"


@pytest.mark.parametrize(
    ("slices", "truncated"),
    [
        ((0, 74), ()),
        ((-1, 74), ("L5",)),  # a single slice too few
        ((-27, 74), ("L4", "L5")),  # levels of 22 slices: L5 from -27, L4 from -6, L3 from 16
        ((12, 89), ()),
        ((12, 90), ("T12",)),
        ((-10, 92), ("T12", "L5")),
    ],
)
def test_an_extent_beyond_the_scan_is_kept_and_says_which_levels_are_lost(
    slices: tuple[int, int], truncated: tuple[str, ...]
) -> None:
    """The blocks' own labels reach from slice 12 to 74; what a person gave counts in their place."""
    whole = spine()
    x, y, z = whole.grid.world_mm(np.array([29.5, 18, 48.5]))
    bottom, top = (float(whole.grid.world_mm(np.array([0, 0, k]))[2]) for k in slices)
    ruling = Ruling("Dr A", l2_world_mm=(x, y, z), extent_world_mm=(bottom, top))
    found = assess(whole, unanchored="review", ruling=ruling)
    assert found.slices == (slices[0], slices[1] + 1)
    assert found.truncated == truncated
    borders = {"T12": "superior", "L4": "inferior", "L5": "inferior"}
    assert found.findings[: len(truncated)] == tuple(
        f"cut: {level} reaches beyond the {borders[level]} border, by the extent that was given"
        for level in truncated
    )


@pytest.mark.parametrize(
    ("extent", "got"),
    [
        ((242.0, 56.0), "242 and 56 mm"),
        ((float("nan"), 242.0), "nan and 242 mm"),
        ((56.0, float("inf")), "inf mm"),
        ((140.0, 190.0), "50 mm, from 140 to 190 mm"),
        ((-200.0, 242.0), "442 mm"),
        ((900.0, 1100.0), "467%: L2 at 165.5 mm"),
        ((-60.0, 170.0), "2%: L2 at 165.5 mm"),
        ((150.0, 350.0), "92%: L2 at 165.5 mm"),
    ],
)
def test_an_extent_that_no_spine_has_is_refused(extent: tuple[float, float], got: str) -> None:
    ruling = Ruling("Dr A", l2_world_mm=(18.0, 22.0, 165.5), extent_world_mm=extent)
    with pytest.raises(LandmarkError) as caught:
        assess(spine(), unanchored="accept", ruling=ruling)
    assert caught.value.reason == "l2_unresolved"
    assert got in str(caught.value.got)
    assert caught.value.expected and "RAS+ world mm" in str(caught.value.fix)


def test_a_point_outside_the_scan_is_refused() -> None:
    with pytest.raises(LandmarkError, match="outside the scan") as caught:
        assess(spine(), unanchored="accept", ruling=Ruling("Dr A", l2_world_mm=(900.0, 0.0, 165.0)))
    assert caught.value.reason == "l2_unresolved"


@pytest.mark.parametrize("without", [(), (Level.L2,)])
def test_labels_that_have_another_level_where_l2_was_placed_give_no_extent(
    without: tuple[Level, ...],
) -> None:
    """One level is 11 slices; a point may lie up to half of it beside the middle of what is called L2."""
    labelled = spine(_without(*without))
    for slices, refused in ((-11, True), (-6, True), (-5, False), (0, False), (5, False), (11, True)):
        point = tuple(labelled.grid.world_mm(np.array([29.5, 18, 48.5 + slices])))
        ruling = Ruling("Dr A", l2_world_mm=point)
        if not refused:
            assert assess(labelled, unanchored="accept", ruling=ruling).slices == (12, 75)
            continue
        with pytest.raises(LandmarkError, match="--extent") as caught:
            assess(labelled, unanchored="accept", ruling=ruling)
        assert f"{abs(slices) / 11:.1f} vertebrae {'above' if slices > 0 else 'below'}" in str(caught.value)


def test_the_account_of_a_refused_spine_keeps_every_number() -> None:
    swollen = spine(_swollen(spine_labels()))
    with pytest.raises(LandmarkError) as caught:
        assess(swollen, unanchored="accept")
    account = account_of(swollen, caught.value)
    assert set(account.per_level) == {level.value for level in LEVEL_ORDER}
    assert any(finding.startswith("landmarks_implausible: L4") for finding in account.findings)
    assert 0 < account.confidence < 0.5


def test_l2_alone_is_enough_and_shows_what_is_missing() -> None:
    found = assess(spine(spine_labels(levels=(Level.L2,))), unanchored="accept")
    assert found.rung == "l2"
    assert found.truncated == (Level.T12, Level.L1, Level.L3, Level.L4, Level.L5)
