"""Identifiers planted everywhere in the source are nowhere in what the platform keeps or says."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from retroln.catalog.accounting import Outcome
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom
from retroln.settings import Settings
from retroln.steps.holdings import survey
from retroln.steps.identity import Policy
from retroln.steps.source import find
from retroln.steps.withdraw import withdraw
from retroln.steps.workspace import open_workspace
from tests.dicom_masks import rectangle, segmentation, structure_set
from tests.dicom_series import KEY, Made, ct_array, lps_grid, of_volume, series, write
from tests.way import embedded, ingest_all, ingest_and_prepare

# what is looked for, in any case; each planted value holds one of them
NAMES = ("smithson", "jonathan", "4711-987", "19470815", "424242", "plantedtext")
_VALUES = {
    "PN": "SMITHSON^JONATHAN",
    "LO": "PLANTEDTEXT lo SMITHSON",
    "SH": "PLANTEDTEXT",
    "UI": "1.2.276.424242.77",
    "DA": "19470815",
    "DT": "19470815120000",
    "LT": "PLANTEDTEXT lt, Jonathan called",
    "ST": "PLANTEDTEXT st",
    "UT": "PLANTEDTEXT ut of Mr Smithson",
    "UC": "PLANTEDTEXT uc",
    "AE": "PLANTEDTEXT",
}
# these say what the object is; with another value it would not be read at all (see the test of refusals)
_NEEDED = {"SOPClassUID", "TransferSyntaxUID", "RescaleType", "SOPInstanceUID"}


def _plant_identity(datasets: list[Dataset]) -> list[Dataset]:
    """Name, ids, UIDs and dates in every slice; all else that the dictionary knows in the last three."""
    for k, one in enumerate(datasets):
        one.PatientName, one.PatientID, one.PatientBirthDate = "SMITHSON^JONATHAN", "4711-987", "19470815"
        one.StudyDate = one.SeriesDate = one.AcquisitionDate = one.ContentDate = "19470815"
        one.StudyInstanceUID, one.SeriesInstanceUID = "1.2.276.424242.1", f"{one.SeriesInstanceUID}.424242"
        one.FrameOfReferenceUID = "1.2.276.424242.4"
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{one.SOPInstanceUID}.424242.{k}"
        one.SeriesDescription = one.ProtocolName = "PLANTEDTEXT Smithson portal venous"
        one.ConvolutionKernel = "SMITHSON"
    for one in datasets[-3:]:  # slices that take turns would be refused
        _plant_everywhere(one)
    return datasets


def _plant_everywhere(one: Dataset) -> None:
    kept = {name: one[name] for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if 0x0008 <= tag >> 16 < 0x5000 and vr in _VALUES and keyword not in _NEEDED:
            one.add_new(tag, vr, _VALUES[vr])
    one.PatientID = "4711-987"
    for element in kept.values():
        one.add(element)
    block = one.private_block(0x0029, "PLANTEDTEXT SMITHSON", create=True)
    block.add_new(0x10, "LO", "SMITHSON^JONATHAN")
    block.add_new(0x11, "OB", b"19470815 in binary 4711-987 ")
    inner = Dataset()
    for keyword, value in (("PatientName", "SMITHSON^JONATHAN"), ("PatientID", "4711-987")):
        setattr(inner, keyword, value)
    inner.add_new(0x00290010, "LO", "PLANTEDTEXT")
    for keyword in ("OtherPatientIDsSequence", "RequestAttributesSequence", "ReferencedStudySequence"):
        setattr(one, keyword, [inner])
    block.add_new(0x12, "SQ", [inner])


def _identified_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Every place of a NIfTI header that takes text, and an extension."""
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"], image.header["aux_file"] = b"SMITHSON JONATHAN 19470815", b"SMITHSON.dcm"
    image.header["intent_name"], image.header["db_name"] = b"4711-987", b"PLANTEDTEXT"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SMITHSON^JONATHAN 4711-987"))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def _deliver(source: Path, top: str, phantom: Phantom) -> None:
    """Good cases as DICOM and NIfTI, with a mask as SEG, and bad ones whose messages quote what they can."""
    scan = of_volume(phantom.ct, Made(patient_id="4711-987"))
    planted = _plant_identity(scan)
    base = source / top
    names = "SMITHSON^JONATHAN_19470815_{}.dcm"
    write(base / "DICOM" / "dicom" / "SMITHSON_JONATHAN_4711-987", planted, names=names)
    labels = (phantom.nodes.to_source() > 0).astype(np.uint8)
    mask = segmentation(planted, labels, ("Lymph node of SMITHSON",))
    mask.save_as(base / "DICOM" / "mask.dcm", enforce_file_format=True)
    nifti.write_source(base / "DICOM" / "vertebrae.nii.gz", phantom.vertebrae)
    _identified_nifti(base / "NIFTI" / "ct.nii.gz", phantom.ct.to_source(), phantom.ct.source.affine)
    labels_v = phantom.vertebrae.to_source()
    _identified_nifti(base / "NIFTI" / "vertebrae.nii.gz", labels_v, phantom.vertebrae.source.affine)
    _deliver_bad(base)


def _deliver_bad(base: Path) -> None:
    array, grid = ct_array(), lps_grid()
    names = "SMITHSON_{}.dcm"
    cut = write(base / "CUT" / "dicom", _plant_identity(series(array, grid, Made(study=11))), names=names)
    cut[4].write_bytes(cut[4].read_bytes()[:900])
    tilted = _plant_identity(series(array, grid, Made(study=12)))
    for one in tilted:
        one.ImageOrientationPatient = [1, 0, 0, 0, 0.98, -0.199]
    write(base / "TILT" / "dicom", tilted, names=names)
    unit = _plant_identity(series(array, grid, Made(study=13)))
    for one in unit:
        one.RescaleType = "SMITHSON"
    write(base / "UNIT" / "dicom", unit, names=names)
    named = _plant_identity(series(array, grid, Made(study=14)))
    write(base / "ROIS" / "dicom", named, names=names)
    polygon = rectangle((3.5, 6.5), (3.5, 6.5), 4)
    made = Made(study=14, patient_id="4711-987")
    rois = structure_set([("SMITHSON a", [polygon]), ("SMITHSON b", [polygon])], grid, made)
    rois.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.276.424242.4"
    rois.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence = []
    rois.save_as(base / "ROIS" / "mask.dcm", enforce_file_format=True)
    (base / "GZIP").mkdir()
    (base / "GZIP" / "ct.nii.gz").write_bytes(gzip.compress(b"SMITHSON^JONATHAN" * 100))
    levels = base / "LEVELS" / "vertebrae" / "SMITHSON_L2.nii.gz"
    _identified_nifti(levels, (array > 0).astype(np.uint8), grid.affine)
    _identified_nifti(base / "LEVELS" / "ct.nii.gz", array, grid.affine)


REASONS = {
    "CUT": "truncated",
    "TILT": "gantry_tilt",
    "UNIT": "not_hu",
    "ROIS": "mask_segments",
    "GZIP": "not_nifti",
    "LEVELS": "landmarks_missing",
}


def found_in(settings: Settings, folder: Path) -> list[str]:
    """Where any of the names is, in files of the platform (packed ones unpacked) and in their paths."""
    hits = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_relative_to(folder / "source"):
            continue
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        shown = str(path.relative_to(folder)).encode() + b"\0" + data
        hits += [f"{path.relative_to(folder)}: {name}" for name in NAMES if name.encode() in shown.lower()]
    return hits


@pytest.mark.parametrize("identity", ["given", "pseudonym"])
def test_planted_identifiers_are_nowhere(
    identity: str,
    tmp_path: Path,
    phantom: Phantom,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = embedded(tmp_path, identity=identity, pseudonym_key=KEY)
    # given ids are pseudonyms by definition; the names of objects in a DICOM folder are not
    top = "PAT-1" if identity == "given" else "SMITHSON JONATHAN"
    _deliver(tmp_path / "source", top, phantom)
    if identity == "pseudonym":
        (tmp_path / "source" / "SMITHSON_19470815.nii").write_bytes(b"x")
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG):
        ingested, prepared = ingest_and_prepare(settings)
        again = ingest_all(settings)
    assert (ingested.done, ingested.failed) == (2, 0)
    assert prepared.done == 2
    reasons = sorted(str(one.reason) for one in again.values() if one.outcome is Outcome.QUARANTINED)
    assert reasons == sorted([*REASONS.values(), *(["misplaced"] if identity == "pseudonym" else [])])
    assert found_in(settings, tmp_path) == []
    if identity == "pseudonym":  # a withdrawal notes where things lie, for good
        patient = Policy.of(settings).patient("SMITHSON JONATHAN")
        assert {str(name)[:2] for name in survey(settings, patient).source} == {"S-"}
        withdraw(settings, patient, reason="asked", by="test")
    said = capfd.readouterr()
    text = " ".join([caplog.text, said.out, said.err, *(str(one) for one in again.values())]).lower()
    assert not [name for name in NAMES if name in text]
    open_workspace(settings).catalog.close()
    assert found_in(settings, tmp_path) == []
    assert not list((tmp_path / "work").iterdir())


def test_the_search_for_leaks_finds_one(tmp_path: Path) -> None:
    """Packed, in capitals or in a name: what the test above looks through would show it."""
    settings = embedded(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x.nii.gz").write_bytes(gzip.compress(b"Smithson"))
    (tmp_path / "store" / "19470815").write_bytes(b"")
    assert found_in(settings, tmp_path) == ["store/19470815: 19470815", "store/x.nii.gz: smithson"]


def test_an_unforeseen_error_is_withheld_where_names_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = embedded(tmp_path, identity="pseudonym", pseudonym_key=KEY)
    write(tmp_path / "source" / "SMITHSON" / "A" / "dicom", series(ct_array(), lps_grid()))

    def burst(*_: object) -> None:
        raise RuntimeError("cannot take apart SMITHSON^JONATHAN")

    monkeypatch.setattr("retroln.imaging.nifti.check_ct", burst)
    (found,) = ingest_all(settings).values()
    assert (found.outcome, found.reason) == (Outcome.FAILED, "RuntimeError")
    assert "withheld" in str(found.detail) and "SMITHSON" not in str(found.detail)
    assert "test_identity_leaks" in str(found.detail)


def test_what_was_hidden_can_be_found_with_the_key(tmp_path: Path) -> None:
    settings = embedded(tmp_path, identity="pseudonym", pseudonym_key=KEY)
    folder = tmp_path / "source" / "SMITHSON" / "A" / "dicom"
    path = write(folder, series(ct_array(), lps_grid()), names="SMITHSON_{}.dcm")[3]
    path.write_bytes(path.read_bytes()[:900])
    (found,) = ingest_all(settings).values()
    names = [word.strip("()") for word in str(found.detail).split(":")[0].split() if "S-" in word]
    assert [find(settings, name) for name in names] == [
        ["SMITHSON/A/dicom/"],
        [f"SMITHSON/A/dicom/{path.name}"],
    ]
    assert find(settings, found.case_id) == ["SMITHSON/A/dicom/"]
    write(tmp_path / "source" / "B" / "dicom", series(ct_array(), lps_grid(), Made(patient_id="SMITHSON")))
    patient = Policy.of(settings).patient("SMITHSON")
    assert sorted(find(settings, patient)) == ["B/dicom/", "SMITHSON/A/dicom/"]
