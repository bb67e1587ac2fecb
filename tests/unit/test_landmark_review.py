"""The queue of landmarks: what holds a case, what a person says, and what prepare makes of it.

Phantoms stand in for patients; catalog and store are SQLite and a folder (both databases: tests/servers).
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from retroln.catalog.records import LandmarksRecord, ScanRecord
from retroln.catalog.states import ScanState
from retroln.cli import cli
from retroln.errors import ConflictError, GeometryError, LandmarkError, NotFoundError, UserError
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid
from retroln.imaging.phantom import Phantom, PhantomSpec, make_phantom, shifted_names
from retroln.settings import Settings
from retroln.steps import infer, landmark_review
from retroln.steps.landmark_review import Point
from retroln.steps.words import Words
from retroln.steps.workspace import open_workspace
from tests.way import embedded, ingest_and_prepare, own_ct, write_case

WORDS = Words("Dr A", "counted from the ribs")
L2 = 30


@pytest.fixture(scope="session")
def shifted() -> Phantom:
    """The phantom of the other tests under names that are one level too low."""
    return make_phantom(
        PhantomSpec(seed=7, spacing_mm=(4.0, 4.0, 5.0), orientation="LPS", level_names=shifted_names(-1))
    )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, shifted: Phantom) -> Path:
    """A platform with one case that is held because its names are one level off."""
    folder = tmp_path_factory.mktemp("held")
    write_case(folder / "source" / "PAT" / "CASE", shifted)
    settings = embedded(folder)
    assert ingest_and_prepare(settings)[1].quarantined == 1
    open_workspace(settings).catalog.close()
    return folder


@pytest.fixture
def held(settings: Settings, tmp_path: Path, template: Path) -> Settings:
    """A copy of that platform."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return settings


def _scan(settings: Settings, case: str = "CASE") -> ScanRecord:
    found = open_workspace(settings).catalog.current_scan(case)
    assert found is not None
    return found


def _landmarks(settings: Settings) -> LandmarksRecord:
    return open_workspace(settings).catalog.landmarks_of(_scan(settings).scan_id)


def _margin_voxel(settings: Settings) -> int:
    """Where the stored region begins, front to back."""
    crop = open_workspace(settings).catalog.crop_of(_scan(settings).scan_id)
    return int(crop.start[1])


def test_a_held_case_keeps_numbers_findings_and_a_picture(held: Settings) -> None:
    scan, found = _scan(held), _landmarks(held)
    assert (scan.state, scan.reason) == (ScanState.QUARANTINED, "numbering_doubtful")
    assert (found.rung, found.anchored) == ("none", False)
    assert set(found.levels) == {"T12", "L1", "L2", "L3", "L4", "L5", "S1"}
    l2 = found.levels["L2"]
    assert {"volume_mm3", "height_mm", "centroid_world_mm", "to_next_mm", "drift_mm"} <= set(l2)
    assert (l2["fragments"]["count"], l2["touches"]) == (0, [])
    assert l2["bone_contrast_hu"] > 60
    assert found.confidence == 0.4
    assert any(finding.startswith("numbering_doubtful: ") for finding in found.findings)
    png = open_workspace(held).store.get_bytes(str(found.picture_key))
    assert Image.open(io.BytesIO(png)).size[0] > 300


def test_the_queue_lists_the_least_trusted_first(
    held: Settings, tmp_path: Path, deliver: Callable[..., Path], shifted: Phantom
) -> None:
    worse = shifted.vertebrae.array.copy()
    worse[worse == L2] = 0
    write_case(tmp_path / "source" / "P2" / "WORSE", shifted)
    nifti.write_source(
        tmp_path / "source" / "P2" / "WORSE" / "vertebrae.nii.gz", shifted.vertebrae.with_array(worse)
    )
    deliver("BARE", "P3", parts=("ct",))
    deliver("GOOD", "P4")
    ingest_and_prepare(held)
    assert [scan.case_id for scan, _ in landmark_review.queue(held)] == ["BARE", "WORSE", "CASE"]


def test_a_ct_that_is_not_in_hu_waits_and_can_be_accepted(
    settings: Settings, deliver: Callable[..., Path], phantom: Phantom
) -> None:
    """100 HU too high: nothing that the whole volume would tell."""
    nifti.write_source(deliver("CASE") / "ct.nii.gz", phantom.ct.with_array(phantom.ct.array + np.int16(100)))
    ingested, prepared = ingest_and_prepare(settings)
    assert (ingested.done, prepared.quarantined) == (1, 1)
    scan = _scan(settings)
    assert (scan.reason, [one.case_id for one, _ in landmark_review.queue(settings)]) == ("not_hu", ["CASE"])
    assert "PAT/CASE/ct.nii.gz: the CT is not in Hounsfield units" in str(scan.detail)
    assert "fat at -240 to -30; got: muscle 1" in str(scan.detail)
    assert _landmarks(settings).levels["L2"]["fat_hu"] == pytest.approx(-4, abs=12)
    landmark_review.accept(settings, "CASE", WORDS)
    assert ingest_and_prepare(settings)[1].done == 1
    assert any("accepted: the CT is not in Hounsfield units" in one for one in _landmarks(settings).findings)


def test_accepted_landmarks_go_on_as_labelled_and_say_so(held: Settings) -> None:
    ruled = landmark_review.accept(held, "CASE", WORDS)
    assert (ruled.word.action, ruled.word.reviewer, ruled.word.comment) == ("accept", *vars(WORDS).values())
    assert _scan(held).state is ScanState.INGESTED
    assert ingest_and_prepare(held)[1].done == 1
    found = _landmarks(held)
    assert (_scan(held).state, found.rung, found.anchored) == (ScanState.PREPARED, "l2", True)
    assert "reviewed: the landmarks were accepted by Dr A" in found.findings
    assert any(finding.startswith("accepted: the names of the vertebrae") for finding in found.findings)
    history = open_workspace(held).catalog.case_history("CASE")
    assert [event.reason for event in history.events][-2:] == ["landmarks_reviewed", None]
    model, contract = SimpleNamespace(dataset=SimpleNamespace(members=())), SimpleNamespace(stand_in=None)
    on_the_page = infer._cautions(model, contract, history)
    assert "By a person's word, the landmarks were accepted by Dr A." in on_the_page
    assert any(
        line.startswith("A check that this person overruled: the names of the vertebrae")
        for line in on_the_page
    )


def test_a_corrected_label_map_takes_the_place_of_the_wrong_one(
    held: Settings, tmp_path: Path, phantom: Phantom
) -> None:
    nifti.write_source(tmp_path / "mended.nii.gz", phantom.vertebrae)
    before = _scan(held).vertebrae_key
    ruled = landmark_review.correct_by_map(held, "CASE", WORDS, tmp_path / "mended.nii.gz", "totalseg-v2")
    assert (ruled.still_held, ruled.word.replaced_key) == (None, before)
    assert _scan(held).vertebrae_key == ruled.word.vertebrae_key != before
    assert ingest_and_prepare(held)[1].done == 1
    found = _landmarks(held)
    assert (found.source, found.rung, found.anchored) == ("reviewer", "l2", True)
    assert found.findings == ("reviewed: the label map was corrected by Dr A",)
    twin = embedded(tmp_path / "other")
    write_case(tmp_path / "other" / "source" / "PAT" / "CASE", phantom)
    ingest_and_prepare(twin)
    assert _margin_voxel(held) == _margin_voxel(twin)


def test_a_correction_that_would_be_held_again_is_told_and_can_be_accepted(
    held: Settings, tmp_path: Path, phantom: Phantom
) -> None:
    labels = phantom.vertebrae.array.copy()
    labels[np.isin(labels, (28, 29))] = 28  # L3 and L4 in one label
    nifti.write_source(tmp_path / "fused.nii.gz", phantom.vertebrae.with_array(labels))
    ruled = landmark_review.correct_by_map(held, "CASE", WORDS, tmp_path / "fused.nii.gz", "totalseg-v2")
    assert ruled.still_held and "L4 does not have the size" in ruled.still_held
    assert ingest_and_prepare(held)[1].quarantined == 1
    assert _scan(held).reason == "landmarks_implausible"
    landmark_review.accept(held, "CASE", Words("Dr B", "a block vertebra"))
    assert ingest_and_prepare(held)[1].done == 1
    assert [word.action for word in open_workspace(held).catalog.landmark_reviews("CASE")] == [
        "correct",
        "accept",
    ]


def test_l2_by_hand_moves_the_region_there(held: Settings, tmp_path: Path) -> None:
    """Its names are one level off, so the labels cannot say how far the region of that L2 reaches."""
    grid = _grid(held)
    x, y, z = (float(v) for v in grid.world_mm(np.array([45.0, 40.0, 40.0])))
    with pytest.raises(LandmarkError, match="--extent"):
        landmark_review.correct_by_point(held, "CASE", WORDS, Point((x, y, z)))
    said = landmark_review.correct_by_point(held, "CASE", WORDS, Point((x, y, z), (z - 120, z + 80))).cautions
    assert any("what they call L2" in one and "nodes get no level" in one for one in said)
    assert ingest_and_prepare(held)[1].done == 1
    crop = open_workspace(held).catalog.crop_of(_scan(held).scan_id)
    assert crop.roi["rung"] == "reviewer"
    # 30 mm behind the front and 75 mm to the left, in voxels of 4 mm whose extent meets the box
    assert crop.start[:2] == (26, 32)
    assert _landmarks(held).findings[0] == "reviewed: L2 and the ends of T12-L5 were placed by Dr A"
    assert infer._levels(open_workspace(held), _scan(held), tmp_path) is None  # names no node


def _grid(settings: Settings) -> Grid:
    scan = _scan(settings)
    return Grid(scan.shape, np.asarray(scan.affine))


def _without_labels(settings: Settings) -> Settings:
    """The same platform with a second case, BARE, whose CT came alone."""
    source = Path(settings.source_uri.removeprefix("file://"))
    ct = nifti.read(source / "PAT" / "CASE" / "ct.nii.gz")
    nifti.write_source(source / "P2" / "BARE" / "ct.nii.gz", own_ct(ct, "P2"))
    ingest_and_prepare(settings)
    return settings


def test_a_case_without_labels_goes_on_with_l2_and_extent(held: Settings) -> None:
    settings = _without_labels(held)
    assert _scan(settings, "BARE").reason == "landmarks_missing"
    with pytest.raises(ConflictError, match="no landmarks that could be accepted"):
        landmark_review.accept(settings, "BARE", WORDS)
    grid = _grid(settings)
    x, y, z = (float(v) for v in grid.world_mm(np.array([45.0, 40.0, 40.0])))
    with pytest.raises(LandmarkError, match="--extent"):
        landmark_review.correct_by_point(settings, "BARE", WORDS, Point((x, y, z)))
    low, high = (float(grid.world_mm(np.array([0, 0, k]))[2]) for k in (15, 60))
    landmark_review.correct_by_point(settings, "BARE", WORDS, Point((x, y, z), (low, high)))
    assert ingest_and_prepare(settings)[1].done == 1
    crop = open_workspace(settings).catalog.crop_of(_scan(settings, "BARE").scan_id)
    assert (crop.start[2], crop.stop[2]) == (15, 61)


def test_a_label_map_on_another_grid_is_refused(held: Settings, tmp_path: Path, phantom: Phantom) -> None:
    affine = phantom.vertebrae.grid.affine.copy()
    affine[0, 3] += 1.0
    nib.save(nib.Nifti1Image(phantom.vertebrae.array, affine), tmp_path / "moved.nii.gz")
    with pytest.raises(GeometryError) as caught:
        landmark_review.correct_by_map(held, "CASE", WORDS, tmp_path / "moved.nii.gz", "totalseg-v2")
    assert caught.value.reason == "grid_mismatch"
    assert open_workspace(held).catalog.landmark_reviews("CASE") == []


def test_the_same_word_twice_is_written_once(held: Settings) -> None:
    first = landmark_review.accept(held, "CASE", WORDS)
    assert landmark_review.accept(held, "CASE", WORDS) == first
    ingest_and_prepare(held)
    assert landmark_review.accept(held, "CASE", WORDS) == first
    assert _scan(held).state is ScanState.PREPARED
    assert len(open_workspace(held).catalog.landmark_reviews("CASE")) == 1


def test_of_a_case_that_a_worker_has_in_hand_nothing_is_said(held: Settings) -> None:
    catalog = open_workspace(held).catalog
    assert catalog.claim(_scan(held).scan_id, "worker", 60)
    with pytest.raises(ConflictError, match="a worker has case CASE in hand"):
        landmark_review.accept(held, "CASE", WORDS)
    assert catalog.landmark_reviews("CASE") == []


def test_new_source_bytes_are_judged_anew(held: Settings, tmp_path: Path) -> None:
    landmark_review.accept(held, "CASE", WORDS)
    ingest_and_prepare(held)
    path = tmp_path / "source" / "PAT" / "CASE" / "ct.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1), image.affine), path)
    assert ingest_and_prepare(held)[1].quarantined == 1
    scan = _scan(held)
    assert (scan.revision, scan.reason) == (2, "numbering_doubtful")
    catalog = open_workspace(held).catalog
    assert catalog.landmark_review_of(scan.scan_id) is None
    assert len(catalog.landmark_reviews("CASE")) == 1


def test_a_prepared_case_can_be_corrected_but_not_accepted(
    settings: Settings, deliver: Callable[..., Path], tmp_path: Path, phantom: Phantom
) -> None:
    deliver("CASE", "PAT")
    ingest_and_prepare(settings)
    with pytest.raises(ConflictError, match="does not wait"):
        landmark_review.accept(settings, "CASE", WORDS)
    nifti.write_source(tmp_path / "mended.nii.gz", phantom.vertebrae)
    landmark_review.correct_by_map(settings, "CASE", WORDS, tmp_path / "mended.nii.gz", "totalseg-v2")
    assert _scan(settings).state is ScanState.INGESTED
    assert ingest_and_prepare(settings)[1].done == 1


@pytest.mark.parametrize("words", [Words("", "why"), Words("Dr A", "  ")])
def test_a_word_needs_who_and_why(held: Settings, words: Words) -> None:
    with pytest.raises(UserError, match="who and why"):
        landmark_review.accept(held, "CASE", words)


def test_an_unknown_case_is_named(held: Settings) -> None:
    with pytest.raises(NotFoundError, match="CASE-2"):
        landmark_review.look(held, "CASE-2")


@pytest.fixture
def said(held: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `retroln review ...` on the workspace with the held case."""
    monkeypatch.setattr("retroln.cli.landmarks_review.Settings", lambda: held)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(cli, ["review", *arguments], catch_exceptions=False)


def test_the_commands_show_and_settle_a_case(
    said: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "CASE" in said("list").output and "numbering_doubtful" in said("list").output
    (row,) = json.loads(said("list", "--json").output)
    assert (row["scan"]["case_id"], row["landmarks"]["confidence"]) == ("CASE", 0.4)
    shown = said("show", "CASE", "--picture", str(tmp_path / "look.png")).output
    assert "rung none, not anchored, confidence 0.40" in shown
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    told = said("accept", "CASE", "--reviewer", "Dr A", "--comment", "seen").output
    assert told.splitlines()[:2] == [
        "CASE: noted as number 1; prepare takes the case up",
        "  By a person's word, the landmarks were accepted by Dr A.",
    ]
    assert said("list").output == "no case waits for a look at its landmarks\n"
    monkeypatch.chdir(tmp_path)
    assert "accepted as labelled" in said("show", "CASE").output
    seen = json.loads(said("show", "CASE", "--json").output)
    assert (seen["words"][0]["reviewer"], seen["picture"]) == ("Dr A", "CASE-landmarks.png")
    assert (tmp_path / "CASE-landmarks.png").is_file()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--l2", "1,2"),
        ("--l2", "1,2,x"),
        ("--extent", "1,2"),
        ("--l2", "1,2,nan"),
    ],
    ids=" ".join,
)
def test_a_correction_that_says_nothing_is_wrong_usage(
    options: tuple[str, ...],
) -> None:
    words = ("--reviewer", "Dr A", "--comment", "seen")
    found = CliRunner().invoke(cli, ["review", "correct", "CASE", *words, *options])
    assert found.exit_code == 2
    assert "Error: " in found.output


def test_a_correction_by_point_from_the_shell(
    held: Settings, said: Callable[..., Result], tmp_path: Path
) -> None:
    x, y, z = _grid(held).world_mm(np.array([45.0, 40.0, 40.0]))
    words = ("--reviewer", "Dr A", "--comment", "seen")
    found = said("correct", "CASE", *words, "--l2", f"{x},{y},{z}", "--extent", f"{z - 100},{z + 80}")
    assert found.exit_code == 0
    assert "Cut short at: anterior.\n" in found.output
    word = open_workspace(held).catalog.landmark_review_of(_scan(held).scan_id)
    assert word is not None and word.l2_world_mm == pytest.approx((x, y, z))
    assert "L2 placed at" in said("show", "CASE", "--picture", str(tmp_path / "look.png")).output


BEYOND = [
    "Cut short at: inferior (L4, L5).",
    "Cut: L4 reaches beyond the inferior border, by the extent that was given.",
    "Cut: L5 reaches beyond the inferior border, by the extent that was given.",
]


def test_an_extent_beyond_the_scan_is_said_in_the_same_words_everywhere(
    held: Settings, said: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the reply, by prepare, `status`, `review show`, and on the page; the unclamped box is kept."""
    x, y, z = _grid(held).world_mm(np.array([45.0, 20.0, 12.0]))  # 60 mm above the lowest slice
    words = ("--reviewer", "Dr A", "--comment", "seen")
    where = (f"--l2={x},{y},{z}", f"--extent={z - 140},{z + 100}")
    told = said("correct", "CASE", *words, *where).output
    monkeypatch.setattr("retroln.cli.pipeline.Settings", lambda: held)
    monkeypatch.setattr("retroln.cli.state.Settings", lambda: held)
    prepared, status = (
        CliRunner().invoke(cli, command, catch_exceptions=False).output
        for command in (["prepare"], ["status", "CASE"])
    )
    shown = said("show", "CASE", "--picture", str(tmp_path / "look.png")).output
    history = open_workspace(held).catalog.case_history("CASE")
    model, contract = SimpleNamespace(dataset=SimpleNamespace(members=())), SimpleNamespace(stand_in=None)
    page = "\n".join(infer._cautions(model, contract, history))
    for place in (told, prepared, status, shown, page):
        assert [sentence for sentence in BEYOND if sentence not in place] == []
    crop = open_workspace(held).catalog.crop_of(_scan(held).scan_id)
    spacing = _grid(held).spacing_mm[2]
    assert "inferior" in crop.clamped_sides
    assert crop.roi["clamped_sides"] == list(crop.clamped_sides)
    assert crop.start[2] == 0
    assert crop.roi["unclamped_voxel"]["start"][2] == round(-80 / spacing)
    assert _landmarks(held).truncated == ("L4", "L5")


def test_an_extent_that_no_spine_has_is_refused_and_not_written_down(
    held: Settings, said: Callable[..., Result]
) -> None:
    x, y, z = _grid(held).world_mm(np.array([45.0, 40.0, 40.0]))
    words = ("--reviewer", "Dr A", "--comment", "seen")
    for bottom, top in ((z + 80, z - 100), (z - 400, z + 80), (z + 10, z + 200)):
        with pytest.raises(LandmarkError, match=r"expected: .*; got: .*; fix: read the heights"):
            said("correct", "CASE", *words, f"--l2={x},{y},{z}", f"--extent={bottom},{top}")
    assert open_workspace(held).catalog.landmark_reviews("CASE") == []


def test_a_corrected_label_map_and_an_acceptance_say_what_the_region_lacks(
    held: Settings, tmp_path: Path, phantom: Phantom
) -> None:
    labels = phantom.vertebrae.array.copy()
    labels[labels == 27] = 0  # L5
    nifti.write_source(tmp_path / "mended.nii.gz", phantom.vertebrae.with_array(labels))
    mended = landmark_review.correct_by_map(held, "CASE", WORDS, tmp_path / "mended.nii.gz", "totalseg-v2")
    assert mended.cautions[:2] == ("Cut short at: inferior (L5).", "Not labelled: L5.")
    assert ingest_and_prepare(held)[1].done == 1
    assert landmark_review.look(held, "CASE").cautions == mended.cautions
