"""DICOM through ingest: the same scan as from NIfTI, bad studies held, headers kept without the patient."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from retroln.catalog.accounting import Outcome
from retroln.catalog.states import ScanState
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom
from retroln.imaging.volume import Volume
from retroln.pseudonyms import Pseudonyms
from retroln.report.terminal import case_story
from retroln.settings import Settings
from retroln.steps.cohort import stage_local
from retroln.steps.withdraw import withdraw
from retroln.steps.workspace import open_workspace
from tests.dicom_masks import rectangle, segmentation, structure_set
from tests.dicom_series import (
    KEY,
    Made,
    ct_array,
    enhanced,
    lps_grid,
    of_volume,
    save,
    series,
    set_patient_id,
    write,
    zipped,
)
from tests.way import embedded, ingest_all, ingest_and_prepare, write_case

PSEUDONYMS = Pseudonyms.under(KEY)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return embedded(tmp_path, pseudonym_key=KEY)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


def stored(settings: Settings, key: str | None, folder: Path) -> Volume:
    """A stored NIfTI, read."""
    open_workspace(settings).store.get_file(str(key), folder / "read.nii.gz")
    return nifti.read(folder / "read.nii.gz")


def record(settings: Settings, case_id: str) -> dict[str, object]:
    """What is kept of a case's headers."""
    workspace = open_workspace(settings)
    scan = workspace.catalog.current_scan(case_id)
    assert scan is not None and scan.series_key is not None
    found: dict[str, object] = json.loads(workspace.store.get_bytes(scan.series_key))
    return found


def test_folder_archive_and_object_give_the_scan_that_nifti_gives(
    settings: Settings, source: Path, phantom: Phantom, tmp_path: Path
) -> None:
    write_case(source / "P" / "NIFTI", phantom, own=False)
    datasets = of_volume(phantom.ct)
    write(source / "P" / "FOLDER" / "dicom" / "a", datasets[::2])
    write(source / "P" / "FOLDER" / "dicom" / "b", datasets[1::2], names="{}")
    zipped(source / "P" / "FOLDER" / "dicom", source / "P" / "ZIP" / "ct.zip")
    (source / "P" / "ONE").mkdir()
    save(source / "P" / "ONE" / "ct.dcm", enhanced(phantom.ct.to_source(), phantom.ct.source))
    for case in ("FOLDER", "ZIP", "ONE"):
        write_case(source / "P" / case, phantom, ("vertebrae", "mask"))
    ingested, prepared = ingest_and_prepare(settings)
    assert (ingested.done, prepared.done) == (4, 4)
    catalog = open_workspace(settings).catalog
    plain = catalog.current_scan("NIFTI")
    assert plain is not None and plain.series_key is None
    expected = stored(settings, plain.ct_key, tmp_path)
    for case in ("FOLDER", "ZIP", "ONE"):
        scan = catalog.current_scan(case)
        assert scan is not None
        found = stored(settings, scan.ct_key, tmp_path)
        assert found.array.dtype == expected.array.dtype == np.int16
        assert np.array_equal(found.array, expected.array)
        assert found.grid.distance_mm(expected.grid) < 1e-4
        assert (scan.orientation, scan.source_shape) == (plain.orientation, plain.source_shape)
        crops = [catalog.crop_of(one.scan_id) for one in (scan, plain)]
        assert crops[0].ct_sha256 == crops[1].ct_sha256


def test_what_is_kept_of_the_headers_is_a_series_that_can_be_referred_to(
    settings: Settings, source: Path
) -> None:
    """A segmentation made from the records alone names the same slices under their new UIDs."""
    array, grid = ct_array(), lps_grid()
    write(source / "P" / "A" / "dicom", series(array, grid))
    assert ingest_all(settings)["A"].outcome is Outcome.DONE
    found = record(settings, "A")
    kept = [Dataset.from_json(one) for one in found["instances"]]
    assert found["frames"] == [[k, 0] for k in range(12)]
    assert [float(one.ImagePositionPatient[2]) for one in kept] == [-300.0 + 2.0 * k for k in range(12)]
    assert kept[3].SOPInstanceUID == PSEUDONYMS.uid("1.2.826.0.1.3680043.8.498.3.1.3.4")
    assert {one.SeriesInstanceUID for one in kept} == {PSEUDONYMS.uid(Made().series_uid)}
    assert {(str(one.PatientName), one.PatientID) for one in kept} == {("P^", "P")}
    (day,) = {one.StudyDate for one in kept}
    shifted = np.datetime64("2024-02-29") - PSEUDONYMS.shift_days("P")
    assert day == str(shifted).replace("-", "")
    labels = np.zeros(array.shape, np.uint8)
    labels[4:8, 4:8, 5:8] = 1
    made = segmentation(kept, labels)
    (referred,) = made.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == kept[0].SeriesInstanceUID
    named = {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence}
    assert named == {one.SOPInstanceUID for one in kept}


def test_the_headers_of_an_enhanced_object_keep_each_frame(settings: Settings, source: Path) -> None:
    (source / "P" / "A").mkdir(parents=True)
    save(source / "P" / "A" / "ct.dcm", enhanced(ct_array(), lps_grid()))
    assert ingest_all(settings)["A"].outcome is Outcome.DONE
    found = record(settings, "A")
    (kept,) = [Dataset.from_json(one) for one in found["instances"]]
    assert found["frames"] == [[0, 11 - k] for k in range(12)]
    heights = [
        float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        for frame in kept.PerFrameFunctionalGroupsSequence
    ]
    assert heights == [-300.0 + 2.0 * k for k in range(11, -1, -1)]


def test_dicom_masks_equal_the_nifti_mask(
    settings: Settings, source: Path, phantom: Phantom, tmp_path: Path
) -> None:
    datasets = of_volume(phantom.ct)
    for case in ("SEG", "NIFTI"):
        write(source / "P" / case / "dicom", datasets)
    nifti.write_source(source / "P" / "NIFTI" / "mask.nii.gz", phantom.nodes)
    labels = phantom.nodes.to_source()
    names = [f"Lymph node {label}" for label in range(1, labels.max() + 1)]
    save_mask = segmentation(datasets, labels.astype(np.uint8), names)
    save_mask.save_as(source / "P" / "SEG" / "mask.dcm", enforce_file_format=True)
    assert {outcome.outcome for outcome in ingest_all(settings).values()} == {Outcome.DONE}
    catalog = open_workspace(settings).catalog
    masks = [stored(settings, catalog.current_scan(case).mask_key, tmp_path) for case in ("SEG", "NIFTI")]
    assert np.array_equal(masks[0].array, masks[1].array)


def test_the_mask_decides_which_series_is_used(settings: Settings, source: Path) -> None:
    array, grid = ct_array(), lps_grid()
    drawn = Made(number=4, kernel="Br60f")
    write(source / "P" / "A" / "dicom", series(array, grid), names="soft{}")
    write(source / "P" / "A" / "dicom", series(array, grid, drawn), names="sharp{}")
    mask = structure_set([("node", [rectangle((3.5, 6.5), (3.5, 6.5), 4)])], grid, drawn)
    mask.save_as(source / "P" / "A" / "mask.dcm", enforce_file_format=True)
    assert ingest_all(settings)["A"].outcome is Outcome.DONE
    found = record(settings, "A")
    assert found["chosen"] == {"series": 4, "why": "the mask was drawn on it"}
    assert found["not_chosen"] == [{"series": 3, "why": "the mask was drawn on it"}]


def test_a_series_named_in_the_table_makes_a_revision_of_its_own(settings: Settings, source: Path) -> None:
    array, grid = ct_array(), lps_grid()
    write(source / "study", series(array, grid), names="soft{}")
    write(source / "study", series(array, grid, Made(number=4, kernel="Br60f")), names="sharp{}")
    table = source / "cases.csv"
    table.write_text("case_id,patient_id,ct,series\nA,P,study/,\n")
    assert ingest_all(settings)["A"].outcome is Outcome.DONE
    assert record(settings, "A")["chosen"] == {"series": 3, "why": "kernel"}
    assert ingest_all(settings)["A"].outcome is Outcome.SKIPPED
    table.write_text("case_id,patient_id,ct,series\nA,P,study/,4\n")
    assert ingest_all(settings)["A"].outcome is Outcome.DONE
    assert record(settings, "A")["chosen"] == {"series": 4, "why": "named in cases.csv"}
    assert open_workspace(settings).catalog.current_scan("A").revision == 2


def test_renamed_slices_are_the_same_scan_and_a_lost_one_is_not(settings: Settings, source: Path) -> None:
    folder = source / "P" / "A" / "dicom"
    paths = write(folder, series(ct_array(), lps_grid()))
    assert ingest_all(settings)["A"].outcome is Outcome.DONE
    for number, path in enumerate(paths):
        path.rename(folder / f"Z{number}")
    assert ingest_all(settings)["A"].outcome is Outcome.SKIPPED
    (folder / "Z5").unlink()
    assert ingest_all(settings)["A"].reason == "missing_slices"


def _two_patients(case: Path) -> None:
    write(case / "dicom", series(ct_array(), lps_grid()), names="a{}")
    write(case / "dicom", series(ct_array(), lps_grid(), Made(number=9, patient_id="OTHER")), names="b{}")


def _truncated(case: Path) -> None:
    path = write(case / "dicom", series(ct_array(), lps_grid()))[3]
    path.write_bytes(path.read_bytes()[:700])


def _bad_zip(case: Path) -> None:
    case.mkdir(parents=True)
    (case / "ct.zip").write_bytes(b"PK\x03\x04 and nothing more")


def _nifti_with_dicom_mask(case: Path) -> None:
    array, grid = ct_array(), lps_grid()
    nifti.write(case / "ct.nii.gz", array, grid)
    segmentation(series(array, grid), (array > 0).astype(np.uint8)).save_as(case / "mask.dcm")


def _mask_of_another(case: Path) -> None:
    array, grid = ct_array(), lps_grid()
    write(case / "dicom", series(array, grid))
    other = series(array, grid, Made(study=2))
    segmentation(other, (array > 0).astype(np.uint8)).save_as(case / "mask.dcm")


def _no_ct(case: Path) -> None:
    slices = series(ct_array(), lps_grid())
    for one in slices:
        one.Modality = "MR"
    write(case / "dicom", slices)


BAD: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "several patients": (_two_patients, "several_patients", "P/BAD/dicom/: "),
    "a cut file": (_truncated, "truncated", "P/BAD/dicom/ (object S-"),
    "a cut archive": (_bad_zip, "bad_zip", "P/BAD/ct.zip: "),
    "a DICOM mask beside NIfTI": (_nifti_with_dicom_mask, "mask_without_series", "P/BAD/mask.dcm: "),
    "a mask of another series": (_mask_of_another, "mask_reference", "P/BAD/mask.dcm: "),
    "MR": (_no_ct, "wrong_modality", "P/BAD/dicom/ (object S-"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_study_is_held_with_its_reason_and_the_rest_goes_on(
    name: str, settings: Settings, source: Path
) -> None:
    make, reason, begins = BAD[name]
    write(source / "P" / "GOOD" / "dicom", series(ct_array(), lps_grid()))
    make(source / "P" / "BAD")
    found = ingest_all(settings)
    assert found["GOOD"].outcome is Outcome.DONE
    assert (found["BAD"].outcome, found["BAD"].reason) == (Outcome.QUARANTINED, reason)
    detail = str(found["BAD"].detail)
    assert detail.startswith(begins)
    assert all(part in detail for part in ("expected: ", "got: ", "fix: "))
    assert not list(settings.work_dir.iterdir())
    assert ingest_all(settings)["BAD"].detail == detail


@pytest.mark.parametrize("as_zip", [False, True])
def test_harmless_extras_are_left_out_and_said(settings: Settings, source: Path, as_zip: bool) -> None:
    """In a folder, and in a folder that holds one zip; the log and `status CASE` repeat what was left out."""
    folder = source / "P" / "A" / "dicom"
    slices = write(folder, series(ct_array(), lps_grid()))
    shutil.copyfile(slices[3], folder / "copy")
    (folder / "Thumbs.db").touch()
    if as_zip:
        zipped(folder, source / "study.zip")
        shutil.rmtree(folder)
        folder.mkdir()
        (source / "study.zip").rename(folder / "study.zip")
        (folder / "desktop.ini").touch()
    said = f"left out: files that are no DICOM: {1 + as_zip}; left out: copies of objects, byte for byte: 1"
    outcome = ingest_all(settings)["A"]
    assert (outcome.outcome, outcome.reason, outcome.detail) == (Outcome.DONE, None, said)
    assert record(settings, "A")["remarks"] == said.split("; ")
    _, events, *_ = case_story(open_workspace(settings).catalog, "A", lambda _: None)
    assert list(events.columns[-1].cells) == [said]


def test_without_a_key_dicom_is_held_and_taken_in_once_there_is_one(
    settings: Settings, source: Path, phantom: Phantom, caplog: pytest.LogCaptureFixture
) -> None:
    keyless = Settings(**{**settings.model_dump(), "pseudonym_key": None})
    write(source / "P" / "DICOM" / "dicom", series(ct_array(), lps_grid()))
    zipped(source / "P" / "DICOM" / "dicom", source / "P" / "ZIP" / "ct.nii.gz")  # its name says no DICOM
    write_case(source / "P" / "NIFTI", phantom)
    for _ in range(2):
        caplog.clear()
        found = ingest_all(keyless)
        assert {found[name].reason for name in ("DICOM", "ZIP")} == {"no_pseudonym_key"}
        assert {found[name].outcome for name in ("DICOM", "ZIP")} == {Outcome.QUARANTINED}
        assert "fix: make one" in str(found["DICOM"].detail)
        [first, *_] = [record.message for record in caplog.records]
        assert first.startswith("1 of 3 cases are DICOM and are held as no_pseudonym_key")
    assert open_workspace(keyless).catalog.current_scan("NIFTI").state is ScanState.INGESTED
    caplog.clear()
    found = ingest_all(settings)
    assert {case: outcome.outcome for case, outcome in found.items()} == {
        "DICOM": Outcome.DONE,
        "ZIP": Outcome.DONE,
        "NIFTI": Outcome.SKIPPED,
    }
    assert not caplog.records
    assert {outcome.outcome for outcome in ingest_all(settings).values()} == {Outcome.SKIPPED}


def test_a_held_case_that_is_broken_too_says_so_once_there_is_a_key(settings: Settings, source: Path) -> None:
    keyless = Settings(**{**settings.model_dump(), "pseudonym_key": None})
    write(source / "P" / "DICOM" / "dicom", series(ct_array(), lps_grid())[:4])
    assert ingest_all(keyless)["DICOM"].reason == "no_pseudonym_key"
    for _ in range(2):
        assert ingest_all(settings)["DICOM"].reason == "too_few_slices"


@pytest.mark.parametrize("beside", [False, True])
def test_a_setting_that_a_message_names_holds_at_the_next_ingest(
    settings: Settings, source: Path, beside: bool
) -> None:
    """Held anew by nothing else; also where the delivery is held beside an earlier scan."""
    folder, grid = source / "P" / "A", lps_grid()
    if beside:
        write(folder / "dicom", series(ct_array(), grid))
        assert ingest_all(settings)["A"].outcome is Outcome.DONE
    polygon = rectangle((3.5, 6.5), (3.5, 6.5), 4)
    rois = structure_set([("one", [polygon]), ("other", [polygon])], grid, Made())
    write(folder / "dicom", series(ct_array(), grid))
    rois.save_as(folder / "mask.dcm", enforce_file_format=True)
    catalog = open_workspace(settings).catalog
    for _ in range(2):
        assert ingest_all(settings)["A"].reason == "mask_segments"
        assert len(catalog.case_history("A").scans) == 1
    settings = settings.model_copy(update={"mask_names": "^one$"})
    assert ingest_all(settings)["A"].outcome is Outcome.DONE
    assert ingest_all(settings)["A"].outcome is Outcome.SKIPPED


def test_a_case_without_a_patient_gets_the_pseudonym_of_its_patient_id(
    settings: Settings, source: Path
) -> None:
    for case, study in (("A", 1), ("B", 2)):
        write(source / case / "dicom", series(ct_array(), lps_grid(), Made(study=study)))
    nobody = series(ct_array(), lps_grid(), Made(patient_id=""))
    write(source / "C" / "dicom", nobody)
    found = ingest_all(settings)
    assert {case: outcome.outcome for case, outcome in found.items()} == {
        "A": Outcome.DONE,
        "B": Outcome.DONE,
        "C": Outcome.QUARANTINED,
    }
    assert found["C"].reason == "no_patient_id"
    catalog = open_workspace(settings).catalog
    patients = {catalog.current_scan(case).patient_id for case in "AB"}
    assert patients == {PSEUDONYMS.patient("MRN 4711")}
    assert catalog.current_scan("C").patient_id == "unknown"
    assert {outcome.outcome for case, outcome in ingest_all(settings).items() if case != "C"} == {
        Outcome.SKIPPED
    }


def test_a_patient_id_that_cannot_be_told_names_no_patient(settings: Settings, source: Path) -> None:
    """Undecodable bytes, several values and a word for nobody: none of them binds people into one."""
    for case, raw in (("BYTES", b"M\xfcller"), ("VALUES", b"17\\18"), ("NOBODY", b"ANONYMOUS")):
        datasets = series(ct_array(), lps_grid(), Made(patient_id="PLACE"))
        for one in datasets:
            one.SpecificCharacterSet = "ISO_IR 192"
        for path in write(source / case / "dicom", datasets):
            set_patient_id(path, raw)
    shutil.copytree(source / "BYTES", source / "P" / "LISTED")
    found = ingest_all(settings)
    assert {case: outcome.reason for case, outcome in found.items()} == {
        "BYTES": "doubtful_patient_id",
        "VALUES": "doubtful_patient_id",
        "NOBODY": "no_patient_id",
        "LISTED": None,
    }
    assert not any(
        name in str(outcome.detail) for outcome in found.values() for name in ("ller", "17", "ANON")
    )


def test_a_patient_id_of_nobody_binds_no_two_patients(settings: Settings, source: Path) -> None:
    for number, case in enumerate("AB", start=1):
        made = Made(study=number, patient_id="ANONYMOUS")
        write(source / f"P{case}" / case / "dicom", series(ct_array(seed=number), lps_grid(), made))
    assert {one.outcome for one in ingest_all(settings).values()} == {Outcome.DONE}


def test_a_withdrawn_patient_is_refused_by_the_headers_too(settings: Settings, source: Path) -> None:
    write(source / "A" / "dicom", series(ct_array(), lps_grid()))
    ingest_all(settings)
    patient = PSEUDONYMS.patient("MRN 4711")
    withdraw(settings, patient, reason="asked", by="test")
    workspace = open_workspace(settings)
    assert not [info.key for info in workspace.store.list("scans/A/")]
    assert workspace.catalog.current_scan("A").series_key is None
    write(source / "B" / "dicom", series(ct_array(seed=8), lps_grid(), Made(study=3)))
    found = ingest_all(settings)
    assert (found["A"].reason, found["B"].reason) == ("withdrawn", "withdrawn")
    assert not [info.key for info in workspace.store.list("scans/B/")]
    assert workspace.catalog.current_scan("B").state is ScanState.QUARANTINED


def test_a_local_table_may_name_a_folder_and_an_archive(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path / "disk" / "study", series(ct_array(), lps_grid()))
    zipped(tmp_path / "disk" / "study", tmp_path / "disk" / "study.zip")
    table = tmp_path / "disk" / "cases.csv"
    table.write_text("case_id,patient_id,ct,series\nA,P,study,3\nB,P,study.zip,\n")
    stage_local(table, tmp_path / "source")
    assert {outcome.outcome for outcome in ingest_all(settings).values()} == {Outcome.DONE}
    assert record(settings, "A")["chosen"] == {"series": 3, "why": "named in cases.csv"}


def test_what_is_laid_beside_known_slices_makes_no_new_scan(settings: Settings, source: Path) -> None:
    folder = source / "P" / "C" / "dicom"
    write(folder, series(ct_array(), lps_grid()))
    first = sorted(folder.iterdir())[0]
    assert ingest_all(settings)["C"].outcome is Outcome.DONE
    (folder / "Thumbs.db").write_bytes(b"pictures")
    (folder / "notes.txt").write_bytes(b"")
    (folder / "copy.dcm").write_bytes(first.read_bytes())
    assert ingest_all(settings)["C"].outcome is Outcome.SKIPPED
    (folder / "other.dcm").write_bytes(b"no slice")
    assert ingest_all(settings)["C"].reason == "not_dicom"
    (scan,) = open_workspace(settings).catalog.case_history("C").scans
    assert (scan.revision, scan.state) == (1, ScanState.INGESTED)
