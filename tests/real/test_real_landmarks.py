"""What the landmark gate says of real label maps and CT (`RETROLN_REAL_DATA`), and of real spines that are
numbered wrongly. The limits were set on three of these spines: that they pass proves nothing about others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from retroln.anatomy import numbering as limits
from retroln.anatomy import plausibility
from retroln.anatomy.landmarks import Ruling, assess
from retroln.anatomy.level_facts import LevelFacts, drifts_mm, measure
from retroln.anatomy.numbering import numbering
from retroln.anatomy.on_bone import SHARPNESS_MIN, bone_contrast
from retroln.anatomy.vertebrae import LEVEL_ORDER, LabelScheme, Level, Vertebra, Vertebrae
from retroln.catalog.records import LandmarksRecord, ScanRecord
from retroln.catalog.states import ScanState
from retroln.errors import GeometryError, LandmarkError
from retroln.imaging import nifti
from retroln.imaging.geometry import VoxelBox, require_same_grid
from retroln.settings import Settings
from retroln.steps.landmark_review import accept, look
from retroln.steps.words import Words
from retroln.steps.workspace import open_workspace
from tests.real.fleshed import BONE_ALONE, write_fleshed
from tests.way import ingest_and_prepare

pytestmark = pytest.mark.skipif(
    not os.environ.get("RETROLN_REAL_DATA"), reason="RETROLN_REAL_DATA is not set"
)
SPINES: dict[str, LabelScheme] = {
    "totalsegdata_s0328_labels": "totalseg-v2",
    "totalseg_example_vertebrae": "totalseg-v2",
    "totalseg_example_organs": "totalseg-v2",
    "verse004_vertebrae": "verse",
}


def _path(name: str) -> Path:
    return Path(os.environ["RETROLN_REAL_DATA"]) / f"{name}.nii.gz"


@cache
def _spine(name: str, scheme: LabelScheme = "totalseg-v2") -> Vertebrae:
    return Vertebrae.read(_path(name), scheme)


def _renamed(spine: Vertebrae, too_high: int, without: tuple[Level, ...] = ()) -> Vertebrae:
    """The same vertebrae under names that are so many levels too high; ribs and `without` left out."""
    levels: dict[Level, Vertebra] = {}
    for level in LEVEL_ORDER:
        place = LEVEL_ORDER.index(level) + too_high
        really = LEVEL_ORDER[place] if 0 <= place < len(LEVEL_ORDER) else None
        if really in spine.levels and level not in without:
            levels[level] = replace(spine.levels[really], level=level)
    return replace(spine, levels=levels, rib_12=None)


@pytest.mark.parametrize(
    ("name", "scheme", "anchors", "agrees"),
    [
        ("totalsegdata_s0328_labels", "totalseg-v2", ("S1", "ribs"), ("L5", "T12")),
        ("totalseg_example_vertebrae", "totalseg-v2", ("S1",), ("L5",)),  # T12 is cut
        ("totalseg_example_organs", "totalseg-v2", ("S1",), ("L5",)),
        ("verse004_vertebrae", "verse", (), ("L5", "T12")),
    ],
)
def test_what_confirms_the_numbering_of_real_spines(
    name: str, scheme: LabelScheme, anchors: tuple[str, ...], agrees: tuple[str, ...]
) -> None:
    found = _spine(name, scheme)
    judged = numbering(measure(found)[1], found.rib_12)
    assert (judged.anchors, judged.agrees, judged.contradicts) == (anchors, agrees, ())


def test_what_nothing_confirms_waits_by_default() -> None:
    with pytest.raises(LandmarkError) as caught:
        assess(_spine("verse004_vertebrae", "verse"), unanchored=Settings().unanchored)
    assert caught.value.reason == "unanchored"


@pytest.mark.parametrize("without", [(), (Level.S1,), (Level.L5, Level.S1), (Level.T11, Level.T12)], ids=str)
@pytest.mark.parametrize("too_high", [1, -1])
@pytest.mark.parametrize("name", SPINES)
def test_a_real_spine_shifted_by_one_level_never_passes(
    name: str, too_high: int, without: tuple[Level, ...]
) -> None:
    with pytest.raises(LandmarkError) as caught:
        assess(_renamed(_spine(name, SPINES[name]), too_high, without), unanchored="review")
    assert caught.value.reason in ("numbering_doubtful", "unanchored")


@pytest.mark.parametrize("too_high", [1, -1])
@pytest.mark.parametrize("name", SPINES)
def test_the_shapes_alone_give_a_shifted_real_spine_away(name: str, too_high: int) -> None:
    """Also where unanchored spines may pass, as long as what the shapes are judged by is labelled."""
    with pytest.raises(LandmarkError) as caught:
        assess(_renamed(_spine(name, SPINES[name]), too_high), unanchored="accept")
    assert caught.value.reason == "numbering_doubtful"


def test_body_only_labels_confirm_and_contradict_nothing() -> None:
    labels = nifti.read_labels(_path("totalseg_example_vertebrae"))
    bodies = nifti.read_labels(_path("totalseg_example_vertebrae_body"))
    body_only = Vertebrae.from_label_map(
        labels.with_array(np.where(bodies.array == 1, labels.array, 0)), "totalseg-v2"
    )
    for spine in (body_only, _renamed(body_only, 1), _renamed(body_only, -1)):
        judged = numbering(measure(spine)[1], spine.rib_12)
        assert (judged.anchors, judged.agrees, judged.contradicts) == ((), (), ())


# --- the figures that the limits' comments and docs/reference/landmarks.md state


def _whole(name: str) -> dict[Level, LevelFacts]:
    facts = measure(_spine(name, SPINES[name]))[1]
    return {level: one for level, one in facts.items() if not one.touches}


def _ratios(values: Mapping[Level, float]) -> list[float]:
    """Each value over the median of the others."""
    return [
        value / np.median([v for k, v in values.items() if k is not level]) for level, value in values.items()
    ]


def _within(found: list[float], low: float, high: float) -> None:
    assert low <= min(found) and max(found) <= high, (min(found), max(found))
    assert min(found) < low + 0.03 * high and max(found) > 0.97 * high, (min(found), max(found))


def test_sizes_and_spacings_as_stated() -> None:
    region = LEVEL_ORDER[1:7]
    wholes = [_whole(name) for name in SPINES]
    of_region = [[one[level] for level in region if level in one] for one in wholes]
    _within([found.volume_mm3 / 1000 for one in of_region for found in one], 38, 86)
    _within([found.height_mm for one in of_region for found in one], 42, 59)
    volumes = [{k: v.volume_mm3 for k, v in one.items() if k in region} for one in wholes]
    _within([ratio for one in volumes for ratio in _ratios(one)], 0.65, 1.19)
    heights = [{k: v.height_mm for k, v in one.items() if k in region} for one in wholes]
    _within([ratio for one in heights for ratio in _ratios(one)], 0.82, 1.13)


def test_steps_and_drifts_as_stated() -> None:
    steps, shares, between, ends = [], [], [], []
    for name in SPINES:
        whole = _whole(name)
        levels = list(whole)
        apart = {
            lower: float(np.linalg.norm(whole[upper].centroid_mm - whole[lower].centroid_mm))
            for upper, lower in pairwise(levels)
        }
        steps += apart.values()
        shares += _ratios(apart)
        drifts = list(drifts_mm(whole).values())
        between += drifts[1:-1]
        ends += [drifts[0], drifts[-1]]
    _within(steps, 26, 37)
    _within(shares, 0.77, 1.13)
    assert max(between) < 7.1 and max(ends) < 2
    assert 2.5 * max(between) < plausibility.DRIFT_MM


def test_shapes_as_stated() -> None:
    depth: dict[Level, list[float]] = {}
    aspect: dict[Level, list[float]] = {}
    raw: list[float] = []
    for name in SPINES:
        whole = _whole(name)
        reference = [whole[level].spread_mm for level in (Level.L1, Level.L2, Level.L3)]
        deep = np.median([along for _, along in reference])
        broad = np.median([across / along for across, along in reference])
        raw += [across / along for across, along in reference]
        for level in (Level.L4, Level.L5, Level.S1):
            if level in whole:
                across, along = whole[level].spread_mm
                depth.setdefault(level, []).append(along / deep)
                aspect.setdefault(level, []).append(across / along / broad)
    _within(depth[Level.L5], 0.84, 0.90)
    _within(depth[Level.S1], 0.62, 0.65)
    _within(aspect[Level.L4], 1.03, 1.14)
    _within(aspect[Level.L5], 1.40, 1.57)
    _within(raw, 0.64, 0.83)
    assert max(depth[Level.S1]) < limits.SACRAL_DEPTH_BELOW < limits.LUMBAR_DEPTH_ABOVE < min(depth[Level.L5])
    assert max(aspect[Level.L4]) < limits.L5_ASPECT_ABOVE < min(aspect[Level.L5])
    assert max(raw) < limits.ARCH_ASPECT_BELOW


def test_widths_as_stated() -> None:
    found: dict[tuple[Level, Level], list[float]] = {}
    for name in SPINES:
        whole = _whole(name)
        for pair in ((Level.T11, Level.T12), (Level.T12, Level.L1), (Level.L1, Level.L2)):
            if pair[0] in whole and pair[1] in whole:
                found.setdefault(pair, []).append(whole[pair[0]].width_mm / whole[pair[1]].width_mm)
    _within(found[Level.T11, Level.T12], 1.02, 1.05)
    _within(found[Level.T12, Level.L1], 0.56, 0.75)
    _within(found[Level.L1, Level.L2], 0.87, 0.93)


def test_no_whole_level_of_these_has_fragments() -> None:
    for name in SPINES:
        assert {found.fragments.count for found in _whole(name).values()} == {0}


def _contrast(
    ct: str, labels: str, scheme: LabelScheme, move_mm: float = 0, axis: int = 0
) -> tuple[float, float]:
    """Median contrast in HU of labels moved in their scan, and its ratio to that of 10 mm beside."""
    delivered = nifti.read_labels(_path(labels))
    shift = round(move_mm / delivered.grid.spacing_mm[axis])
    moved = delivered.with_array(np.roll(delivered.array, shift, axis))
    found = bone_contrast(nifti.read(_path(ct)), Vertebrae.from_label_map(moved, scheme)).values()
    pairs = np.median([one for one in found if one.aside_hu is not None], axis=0)
    return float(np.median([one.here_hu for one in found])), float(pairs[0] / pairs[1])


@pytest.mark.parametrize(
    ("ct", "labels", "scheme", "contrast_hu", "sharpness"),
    [
        ("totalseg_example_ct", "totalseg_example_vertebrae", "totalseg-v2", 203, 2.3),
        ("tptbox_l3_ct", "tptbox_l3_vertebrae", "verse", 227, 5.6),
        ("totalsegdata_s0328_bone_ct", "totalsegdata_s0328_labels", "totalseg-v2", 310, 2.5),
    ],
)
def test_contrasts_as_stated(
    ct: str, labels: str, scheme: LabelScheme, contrast_hu: float, sharpness: float
) -> None:
    assert _contrast(ct, labels, scheme) == (
        pytest.approx(contrast_hu, abs=1),
        pytest.approx(sharpness, abs=0.06),
    )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("move_mm", [5, 10, 15, 20, 30, -5, -10, -15, -20, -30])
def test_a_real_label_map_that_was_moved_does_not_stand_out(move_mm: float, axis: int) -> None:
    _, sharpness = _contrast(
        "totalseg_example_ct", "totalseg_example_vertebrae", "totalseg-v2", move_mm, axis
    )
    assert sharpness < 0.9 < SHARPNESS_MIN


# --- verdicts on the files as cases


def _delivered(settings: Settings, cases: Mapping[str, tuple[str, str, LabelScheme]]) -> None:
    """Copy files into the source as cases, and take them through ingest and prepare."""
    source = Path(settings.source_uri.removeprefix("file://"))
    source.mkdir(parents=True, exist_ok=True)
    lines = ["case_id,patient_id,ct,vertebrae,label_ids"]
    for case, (ct, labels, scheme) in cases.items():
        for name in (ct, labels):
            bring = write_fleshed if name == BONE_ALONE else shutil.copyfile
            bring(_path(name), source / f"{name}.nii.gz")
        patient = "EXAMPLE" if case == "SMALL" else case  # a part of the same scan
        lines.append(f"{case},{patient},{ct}.nii.gz,{labels}.nii.gz,{scheme}")
    (source / "cases.csv").write_text("\n".join(lines) + "\n")
    ingest_and_prepare(settings)


def _verdict(settings: Settings, case: str) -> tuple[ScanRecord, LandmarksRecord]:
    catalog = open_workspace(settings).catalog
    scan = catalog.current_scan(case)
    assert scan is not None
    return scan, catalog.landmarks_of(scan.scan_id)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Real cases after prepare; of the CT of s0328 only bone is real."""
    from tests.way import embedded

    settings = embedded(tmp_path_factory.mktemp("real"))
    _delivered(
        settings,
        {
            "EXAMPLE": ("totalseg_example_ct", "totalseg_example_vertebrae", "totalseg-v2"),
            "SMALL": ("totalseg_example_ct_sm", "totalseg_example_seg_sm", "totalseg-v2"),
            "L3": ("tptbox_l3_ct", "tptbox_l3_vertebrae", "verse"),
            "S0328": (BONE_ALONE, "totalsegdata_s0328_labels", "totalseg-v2"),
        },
    )
    return settings


def test_totalseg_example_goes_on_with_its_t12_cut(verdicts: Settings) -> None:
    scan, found = _verdict(verdicts, "EXAMPLE")
    assert scan.state is ScanState.PREPARED
    assert (found.rung, found.anchored, found.truncated) == ("l2", True, ("T12",))
    assert found.findings == ("cut: T12 touches the superior border",)
    assert found.levels["T12"]["touches"] == ["superior"]
    assert found.confidence == 0.95


def test_s0328_goes_on_without_a_finding(verdicts: Settings) -> None:
    scan, found = _verdict(verdicts, "S0328")
    assert scan.state is ScanState.PREPARED
    assert (found.rung, found.anchored, found.truncated, found.findings) == ("l2", True, (), ())
    assert found.confidence == 1.0
    assert found.levels and all(one["bone_contrast_hu"] > 200 for one in found.levels.values())


def test_tptbox_l3_waits_because_l3_is_the_only_whole_level(verdicts: Settings) -> None:
    scan, found = _verdict(verdicts, "L3")
    assert (scan.state, scan.reason) == (ScanState.QUARANTINED, "l2_unresolved")
    assert "whole: L3" in str(scan.detail)
    assert {f for f in found.findings if f.startswith("cut: ")} == {
        "cut: L2 touches the superior border",
        "cut: L4 touches the inferior border",
    }
    assert look(verdicts, "L3").picture.startswith(b"\x89PNG")


def test_tptbox_l3_can_be_accepted_on_its_cut_l2(verdicts: Settings) -> None:
    accept(verdicts, "L3", Words("test", "the lower half of L2 shows margin and centre"))
    ingest_and_prepare(verdicts)
    scan, found = _verdict(verdicts, "L3")
    assert (scan.state, found.rung) == (ScanState.PREPARED, "l2")


def test_the_small_example_waits_because_l2_is_cut(verdicts: Settings) -> None:
    scan, found = _verdict(verdicts, "SMALL")
    assert (scan.state, scan.reason) == (ScanState.QUARANTINED, "l2_unresolved")
    assert "cut: L2 touches the inferior border" in found.findings


def test_why_the_wrong_affine_of_the_small_example_cannot_be_seen_in_its_two_files() -> None:
    """CT and labels were cropped alike and kept the uncropped affine alike: each lies on the other.

    What gives it away is the scan that it was cut from: there the same labels lie elsewhere.
    """
    ct, labels = nifti.read(_path("totalseg_example_ct_sm")), _spine("totalseg_example_seg_sm")
    require_same_grid(ct.grid, labels.grid, what="label map")
    contrasts = bone_contrast(ct, labels)
    assert min(one.here_hu for one in contrasts.values()) > 150
    whole = _spine("totalseg_example_vertebrae")
    places = [spine.grid.world_mm(spine.levels[Level.L1].centroid_index()) for spine in (labels, whole)]
    assert np.linalg.norm(places[0] - places[1]) == pytest.approx(246, abs=2)


def test_the_small_labels_do_not_fit_the_scan_they_were_cut_from() -> None:
    """Neither as they are (another shape) nor padded into the scan where their affine says (off bone)."""
    scan = nifti.read(_path("totalseg_example_ct"))
    small = nifti.read_labels(_path("totalseg_example_seg_sm"))
    with pytest.raises(GeometryError) as mismatch:
        require_same_grid(scan.grid, small.grid, what="label map")
    assert mismatch.value.reason == "grid_mismatch"
    padded = np.zeros(scan.grid.shape, small.array.dtype)
    padded[VoxelBox((0, 0, 0), small.grid.shape).slices] = small.array
    with pytest.raises(LandmarkError) as caught:
        assess(Vertebrae.from_label_map(scan.with_array(padded), "totalseg-v2"), unanchored="accept", ct=scan)
    assert caught.value.reason == "off_bone"


def test_dicom_series_labels_hold_no_lumbar_level() -> None:
    spine = _spine("dicom_series_labels")
    with pytest.raises(LandmarkError) as caught:
        assess(spine, unanchored="accept")
    assert (caught.value.reason, caught.value.got) == ("no_lumbar_level", "T11, T12")
    facts = measure(spine)[1]
    assert {level.value: found.touches for level, found in facts.items()} == {
        "T11": ("superior",),
        "T12": ("inferior",),
    }
    assert facts[Level.T11].fragments.count == 2
    with pytest.raises(LandmarkError):
        assess(spine, unanchored="accept", ruling=Ruling("test", accepted=True))
