"""A delivery that cannot be used unseats nothing, and the same bytes are the same scan whenever they come."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.records import LandmarkReviewDraft, ScanRecord
from retroln.catalog.states import ScanState
from retroln.cli import cli
from retroln.errors import ConflictError
from retroln.settings import Settings
from retroln.steps.workspace import open_workspace
from tests.way import ingest_all, ingest_and_prepare

Deliver = Callable[..., Path]
CASE, PATIENT = "CASE", "PAT"


def _half(folder: Path) -> None:
    whole = (folder / "ct.nii.gz").read_bytes()
    (folder / "ct.nii.gz").write_bytes(whole[: len(whole) // 2])


def _link_out(folder: Path) -> None:
    (folder / "ct.nii.gz").unlink()
    (folder / "ct.nii.gz").symlink_to("/dev/null")


def _same_name(folder: Path) -> None:
    other = folder.parent.parent / "OTHER" / CASE
    other.mkdir(parents=True)
    (other / "ct.nii.gz").write_bytes((folder / "ct.nii.gz").read_bytes())


def _other_patient(folder: Path) -> None:
    folder.parent.rename(folder.parent.parent / "OTHER")


HICCUPS = {
    "truncated": _half,
    "unsafe_key": _link_out,
    "duplicate_case_id": _same_name,
    "patient_changed": _other_patient,
}


@pytest.fixture
def catalog(settings: Settings) -> Catalog:
    return open_workspace(settings).catalog


def _mend(folder: Path, deliver: Deliver) -> None:
    """The delivery as it was, byte for byte, with other times."""
    other = folder.parent.parent / "OTHER"
    for path in sorted(other.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if other.exists():
        other.rmdir()
    for path in folder.glob("*"):
        path.unlink()
    deliver(CASE, PATIENT)
    for path in folder.iterdir():
        os.utime(path, ns=(2, 2))


def _scans(catalog: Catalog) -> list[tuple[int, int, str]]:
    return [(one.scan_id, one.revision, one.state.value) for one in catalog.case_history(CASE).scans]


@pytest.mark.parametrize("reason", HICCUPS)
def test_a_bad_delivery_is_held_beside_the_scan_until_the_bytes_are_back(
    settings: Settings, deliver: Deliver, catalog: Catalog, reason: str
) -> None:
    folder = deliver(CASE, PATIENT)
    ingest_and_prepare(settings)
    before = _scans(catalog)
    HICCUPS[reason](folder)
    for _ in range(2):  # told each night, read in the first
        outcome = ingest_all(settings)[CASE]
        assert (outcome.outcome, outcome.reason) == (Outcome.QUARANTINED, reason)
    (held,) = catalog.held_deliveries()
    assert (held.case_id, held.reason, held.detail) == (CASE, reason, outcome.detail)
    assert _scans(catalog) == before == [(1, 1, "prepared")]
    events = [event.reason for event in catalog.case_history(CASE).events]
    assert events.count("delivery_held") == 1
    _mend(folder, deliver)
    assert ingest_all(settings)[CASE] == CaseOutcome(CASE, Outcome.SKIPPED)
    assert (catalog.held_deliveries(), _scans(catalog)) == ([], before)


def test_a_held_delivery_is_shown_and_counted(
    settings: Settings, deliver: Deliver, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    _half(_prepared(settings, deliver))
    ingest_all(settings)
    (run, *_) = catalog.runs()
    assert catalog.quarantined_by(run.run_id) == {"truncated": 1}
    monkeypatch.setenv("RETROLN_CATALOG_URL", settings.catalog_url)
    monkeypatch.setenv("COLUMNS", "200")
    for words in (["status"], ["status", CASE]):
        shown = CliRunner().invoke(cli, words).output
        assert "delivery held, the earlier scan stays" in shown
        assert "truncated" in shown


def test_a_person_can_have_a_held_delivery_read_again(
    settings: Settings, deliver: Deliver, catalog: Catalog
) -> None:
    _half(_prepared(settings, deliver))
    ingest_all(settings)
    assert catalog.requeue(CASE).state is ScanState.PREPARED
    assert ingest_all(settings)[CASE].reason == "truncated"
    events = [event.reason for event in catalog.case_history(CASE).events]
    assert events.count("delivery_held") == 2


def test_bytes_that_come_back_are_the_scan_that_they_were(
    settings: Settings, deliver: Deliver, catalog: Catalog
) -> None:
    folder = _prepared(settings, deliver)
    mask = (folder / "mask.nii.gz").read_bytes()
    (folder / "mask.nii.gz").unlink()
    assert ingest_all(settings)[CASE].outcome is Outcome.DONE
    assert _scans(catalog) == [(1, 1, "superseded"), (2, 2, "ingested")]
    (folder / "mask.nii.gz").write_bytes(mask)
    assert ingest_all(settings)[CASE] == CaseOutcome(CASE, Outcome.DONE)
    assert _scans(catalog) == [(1, 1, "ingested"), (2, 2, "superseded")]
    assert ingest_all(settings)[CASE] == CaseOutcome(CASE, Outcome.SKIPPED)
    (folder / "mask.nii.gz").unlink()
    ingest_all(settings)
    assert _scans(catalog) == [(1, 1, "superseded"), (2, 2, "ingested")]


def test_what_others_recorded_meanwhile_is_not_unseated_by_old_bytes(
    settings: Settings, deliver: Deliver, catalog: Catalog
) -> None:
    folder = _prepared(settings, deliver)
    (folder / "mask.nii.gz").unlink()
    ingest_all(settings)
    with pytest.raises(ConflictError, match="another run added case CASE meanwhile"):
        catalog.bring_back(1, "f", None, follows=7)
    assert _scans(catalog) == [(1, 1, "superseded"), (2, 2, "ingested")]


def _prepared(settings: Settings, deliver: Deliver) -> Path:
    folder = deliver(CASE, PATIENT)
    ingest_and_prepare(settings)
    return folder


def _current(catalog: Catalog) -> ScanRecord:
    scan = catalog.current_scan(CASE)
    assert scan is not None
    return scan


def test_a_word_stays_with_ct_and_vertebrae_when_the_mask_comes_later(
    settings: Settings, deliver: Deliver, catalog: Catalog
) -> None:
    deliver(CASE, PATIENT, ("ct", "vertebrae"))
    ingest_all(settings)
    scan = _current(catalog)
    catalog.quarantine(scan.scan_id, "numbering_doubtful", "which is L2", None)
    corrected = f"scans/{CASE}/corrected.nii.gz"
    for action, labels in (("correct", corrected), ("accept", None)):
        catalog.review_landmarks(
            LandmarkReviewDraft(
                scan_id=scan.scan_id, action=action, reviewer="Dr A", comment="seen", vertebrae_key=labels
            )
        )
        catalog.quarantine(scan.scan_id, "numbering_doubtful", "which is L2", None)
    folder = deliver(CASE, PATIENT)
    ingest_all(settings)
    newer = _current(catalog)
    assert (newer.revision, newer.vertebrae_key) == (2, corrected)
    word = catalog.landmark_review_of(newer.scan_id)
    assert word is not None and (word.scan_id, word.action) == (scan.scan_id, "accept")
    # other labels: judged anew
    (folder / "vertebrae.nii.gz").write_bytes((folder / "mask.nii.gz").read_bytes())
    ingest_all(settings)
    assert catalog.landmark_review_of(_current(catalog).scan_id) is None
