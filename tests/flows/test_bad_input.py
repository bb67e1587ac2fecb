"""Bad input: a clear reason, the case kept and accounted for, the rest goes on."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from retroln.catalog.accounting import Outcome
from retroln.catalog.states import ScanState
from retroln.errors import GateError
from retroln.settings import RoiSpec, Settings, TrainSpec
from retroln.steps import ingest, prepare, train
from retroln.steps.runs import Run
from retroln.steps.workspace import open_workspace

Break = Callable[[Path], None]


def _truncate(folder: Path) -> None:
    path = folder / "ct.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])


def _not_an_image(folder: Path) -> None:
    (folder / "ct.nii.gz").write_bytes(gzip.compress(b"hello" * 1000))


def _save(folder: Path, array: np.ndarray, affine: np.ndarray, name: str = "ct") -> None:
    nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")


def _two_dimensions(folder: Path) -> None:
    _save(folder, np.zeros((40, 40), np.int16), np.eye(4))


def _four_dimensions(folder: Path) -> None:
    _save(folder, np.zeros((20, 20, 20, 3), np.int16), np.eye(4))


def _nan_affine(folder: Path) -> None:
    path = folder / "ct.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[280:284] = np.float32(np.nan).tobytes()  # srow_x[0]
    path.write_bytes(gzip.compress(bytes(raw), 1))


def _zero_spacing(folder: Path) -> None:
    path = folder / "ct.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[280:292] = bytes(12)  # srow_x: the first axis has no length
    raw[252:256] = bytes(4)  # qform_code, sform_code
    raw[254:256] = np.int16(1).tobytes()
    raw[80:84] = bytes(4)  # pixdim[1]
    path.write_bytes(gzip.compress(bytes(raw), 1))


def _other_grid(folder: Path) -> None:
    image = nib.load(folder / "vertebrae.nii.gz")
    shifted = image.affine.copy()
    shifted[0, 3] += 5.0
    _save(folder, np.asarray(image.dataobj), shifted, "vertebrae")


def _magnetic_resonance(folder: Path) -> None:
    image = nib.load(folder / "ct.nii.gz")
    array = np.clip(np.asarray(image.dataobj).astype(np.int32) + 1024, 0, 700).astype(np.int16)
    _save(folder, array, image.affine)


def _empty_vertebrae(folder: Path) -> None:
    image = nib.load(folder / "vertebrae.nii.gz")
    _save(folder, np.zeros(image.shape, np.uint8), image.affine, "vertebrae")


BREAKS: dict[str, tuple[Break, set[str], str]] = {
    "truncated gzip": (_truncate, {"truncated"}, "ct.nii.gz"),
    "not an image": (_not_an_image, {"not_nifti", "truncated"}, "ct.nii.gz"),
    "2D": (_two_dimensions, {"not_3d"}, "expected"),
    "4D": (_four_dimensions, {"not_3d"}, "expected"),
    "NaN affine": (_nan_affine, {"bad_affine"}, "finite"),
    "zero spacing": (_zero_spacing, {"bad_affine"}, "spacing"),
    "label map of another grid": (_other_grid, {"grid_mismatch"}, "mm apart"),
    "MR instead of CT": (_magnetic_resonance, {"not_ct"}, "expected"),
    "empty vertebrae": (_empty_vertebrae, {"no_lumbar_level", "landmarks_empty", "l2_unresolved"}, "fix"),
}


def run_both(settings: Settings) -> dict[str, tuple[Outcome, str | None, str | None]]:
    """Ingest and prepare everything; each stage must balance; the last word on every case."""
    verdicts = {}
    run = Run.begin(settings, "ingest", {})
    outcomes = ingest.ingest(settings, run_id=run.run_id)
    assert run.finish(outcomes).n_in == len(outcomes)
    verdicts.update({o.case_id: (o.outcome, o.reason, o.detail) for o in outcomes})
    run = Run.begin(settings, "prepare", {})
    backlog = prepare.backlog(settings)
    outcomes = prepare.prepare(settings, backlog.left, run_id=run.run_id, owner="test")
    accounting, _ = run.settle(backlog)
    assert accounting.n_in == len(outcomes) + backlog.skipped + len(backlog.held)
    verdicts.update({o.case_id: (o.outcome, o.reason, o.detail) for o in outcomes})
    return verdicts


@pytest.mark.parametrize("name", BREAKS)
def test_bad_case_is_quarantined_with_its_reason_and_the_rest_goes_on(
    name: str, settings: Settings, deliver: Callable[..., Path]
) -> None:
    damage, reasons, mentions = BREAKS[name]
    deliver("GOOD", "P1")
    damage(deliver("BAD", "P2"))
    verdicts = run_both(settings)
    assert verdicts["GOOD"][0] is Outcome.DONE
    outcome, reason, detail = verdicts["BAD"]
    assert outcome is Outcome.QUARANTINED
    assert reason in reasons
    assert detail and mentions in detail
    assert detail.startswith(("P2/BAD/ct.nii.gz: ", "P2/BAD/vertebrae.nii.gz: "))
    assert all(part in detail for part in ("expected: ", "got: ", "fix: "))
    stored = open_workspace(settings).catalog.current_scan("BAD")
    assert stored is not None
    assert (stored.state, stored.reason) == (ScanState.QUARANTINED, reason)


def test_duplicate_case_id_is_quarantined_naming_both(
    settings: Settings, deliver: Callable[..., Path]
) -> None:
    deliver("SAME", "P1")
    deliver("SAME", "P2")
    deliver("OTHER", "P3")
    verdicts = run_both(settings)
    assert verdicts["OTHER"][0] is Outcome.DONE
    assert verdicts["SAME"][:2] == (Outcome.QUARANTINED, "duplicate_case_id")
    assert "P1/SAME/ct.nii.gz, P2/SAME/ct.nii.gz" in str(verdicts["SAME"][2])


def test_empty_node_mask_is_a_node_free_case(settings: Settings, deliver: Callable[..., Path]) -> None:
    folder = deliver("FREE", "P1")
    image = nib.load(folder / "mask.nii.gz")
    _save(folder, np.zeros(image.shape, np.uint8), image.affine, "mask")
    assert run_both(settings)["FREE"][0] is Outcome.DONE


def test_unchanged_cases_are_skipped_and_the_quarantined_stays(
    settings: Settings, deliver: Callable[..., Path]
) -> None:
    deliver("GOOD", "P1")
    _truncate(deliver("BAD", "P2"))
    run_both(settings)
    run = Run.begin(settings, "ingest", {})
    again = {o.case_id: o for o in ingest.ingest(settings, run_id=run.run_id)}
    assert again["GOOD"].outcome is Outcome.SKIPPED
    assert (again["BAD"].outcome, again["BAD"].reason) == (Outcome.QUARANTINED, "truncated")


def test_requeued_case_is_taken_up_once_it_is_mended(
    settings: Settings, deliver: Callable[..., Path]
) -> None:
    _truncate(deliver("CASE", "P1"))
    run_both(settings)
    deliver("CASE", "P1")
    assert run_both(settings)["CASE"][0] is Outcome.DONE
    assert open_workspace(settings).catalog.current_scan("CASE").state is ScanState.PREPARED


def test_requeue_tries_the_same_bytes_again(settings: Settings, deliver: Callable[..., Path]) -> None:
    _truncate(deliver("CASE", "P1"))
    run_both(settings)
    open_workspace(settings).catalog.requeue("CASE")
    assert run_both(settings)["CASE"][:2] == (Outcome.QUARANTINED, "truncated")


def test_changed_bytes_make_a_new_revision(settings: Settings, deliver: Callable[..., Path]) -> None:
    folder = deliver("CASE", "P1")
    run_both(settings)
    image = nib.load(folder / "ct.nii.gz")
    _save(folder, np.asarray(image.dataobj) + np.int16(1), image.affine)
    assert run_both(settings)["CASE"][0] is Outcome.DONE
    current = open_workspace(settings).catalog.current_scan("CASE")
    assert (current.revision, current.state) == (2, ScanState.PREPARED)


def test_case_without_vertebrae_waits_for_a_person(settings: Settings, deliver: Callable[..., Path]) -> None:
    deliver("BARE", "P1", parts=("ct",))
    assert run_both(settings)["BARE"][:2] == (Outcome.QUARANTINED, "landmarks_missing")


def test_same_case_of_another_patient_is_refused(
    settings: Settings, tmp_path: Path, deliver: Callable[..., Path]
) -> None:
    deliver("CASE", "P1")
    run_both(settings)
    (tmp_path / "source" / "P1").rename(tmp_path / "source" / "P2")
    assert run_both(settings)["CASE"][:2] == (Outcome.QUARANTINED, "patient_changed")


def test_level_file_renamed_as_the_message_says_is_taken_up(
    settings: Settings, tmp_path: Path, deliver: Callable[..., Path]
) -> None:
    settings = settings.model_copy(update={"unanchored": "accept"})  # no S1 among these levels
    folder = deliver("CASE", "P1")
    labels = nib.load(folder / "vertebrae.nii.gz")
    values = np.asarray(labels.dataobj)
    (folder / "vertebrae.nii.gz").unlink()
    for level, value in (("L1", 31), ("L2", 30), ("L3", 29)):
        name = f"vertebrae/{level}" if level == "L2" else f"vertebrae/vertebrae_{level}"
        (folder / "vertebrae").mkdir(exist_ok=True)
        _save(folder, (values == value).astype(np.uint8), labels.affine, name)
    run_both(settings)
    first = open_workspace(settings).catalog.crop_of(
        open_workspace(settings).catalog.current_scan("CASE").scan_id
    )
    assert first.roi["rung"] == "interpolated_l1_l3"
    (folder / "vertebrae" / "L2.nii.gz").rename(folder / "vertebrae" / "vertebrae_L2.nii.gz")
    assert run_both(settings)["CASE"][0] is Outcome.DONE
    current = open_workspace(settings).catalog.current_scan("CASE")
    assert current.revision == 2
    assert open_workspace(settings).catalog.crop_of(current.scan_id).roi["rung"] == "l2"


def test_corrected_patient_of_a_case_never_stored_is_taken(
    settings: Settings, tmp_path: Path, deliver: Callable[..., Path]
) -> None:
    deliver("CASE", "P1")
    table = tmp_path / "source" / "cases.csv"
    lines = "case_id,patient_id,ct,vertebrae\nCASE,{},P1/CASE/ct.nii.gz,P1/CASE/vertebrae.nii.gz\n"
    table.write_text(lines.format("no/id"))
    assert run_both(settings)["CASE"][:2] == (Outcome.QUARANTINED, "bad_row")
    table.write_text(lines.format("P1"))
    assert run_both(settings)["CASE"][0] is Outcome.DONE
    assert open_workspace(settings).catalog.current_scan("CASE").patient_id == "P1"


def test_another_region_is_cut_when_a_person_asks(settings: Settings, deliver: Callable[..., Path]) -> None:
    for name in ("CASE", "B", "C"):
        deliver(name, f"P-{name}")
    run_both(settings)
    wider = settings.model_copy(update={"roi": RoiSpec(lateral_mm=170.0)})
    assert prepare.backlog(wider).left == ()
    assert (prepare.reopen(wider), prepare.reopen(wider)) == (3, 0)
    assert run_both(wider)["CASE"][0] is Outcome.DONE
    scan = open_workspace(wider).catalog.current_scan("CASE")
    assert open_workspace(wider).catalog.crop_of(scan.scan_id).roi["spec"]["lateral_mm"] == 170.0
    with pytest.raises(GateError, match="another region"):
        train.publish_dataset(settings, TrainSpec(n_folds=2, containment_min=0.0))
