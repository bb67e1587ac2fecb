"""A case that was taken in wrongly is taken back, and what is right takes its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.states import ScanState
from retroln.cli import cli
from retroln.errors import ConflictError, NotFoundError, UserError, WithdrawnError
from retroln.imaging.phantom import Phantom
from retroln.settings import Settings
from retroln.steps import landmark_review, withdraw
from retroln.steps import retire as retirement
from retroln.steps.case_objects import objects_of
from retroln.steps.retire import retire
from retroln.steps.words import Words
from retroln.steps.workspace import open_workspace
from tests.way import embedded, ingest_all, ingest_and_prepare, write_case

SAID = Words("Dr A", "it is Mrs B's")
LETTER = {"reason": "letter", "by": "Dr A"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return embedded(tmp_path)


@pytest.fixture
def catalog(settings: Settings) -> Catalog:
    return open_workspace(settings).catalog


@pytest.fixture
def folder(settings: Settings, tmp_path: Path, phantom: Phantom) -> Path:
    """A CT that was filed under PAT-A, and is prepared."""
    place = tmp_path / "source" / "PAT-A" / "CASE"
    write_case(place, phantom, own=False)
    ingest_and_prepare(settings)
    return place


def _stored(settings: Settings) -> list[str]:
    return [info.key for info in open_workspace(settings).store.list()]


def _in_a_dataset(catalog: Catalog, scan_id: int = 1) -> None:
    with catalog.database.engine.begin() as connection:
        for statement in (
            "INSERT INTO datasets VALUES (1, 'v', 'k', '2026-01-01')",
            f"INSERT INTO dataset_members VALUES (1, {scan_id}, 'CASE', 'PAT-A', 'train', 0)",
        ):
            connection.execute(text(statement))


@pytest.mark.parametrize("case", ["CASE", "OTHER"])
def test_a_ct_under_the_wrong_patient_is_moved_to_the_right_one(
    settings: Settings, catalog: Catalog, folder: Path, case: str
) -> None:
    right = folder.parent.parent / "PAT-B" / case
    right.parent.mkdir()
    folder.rename(right)
    held = ingest_all(settings)[case]
    assert held.reason == ("patient_changed" if case == "CASE" else "same_image")
    assert "retroln review retire CASE" in str(held.detail)
    done = retire(settings, "CASE", "PAT-A", SAID)
    assert (done.scan.state, done.scan.reason, done.datasets) == (ScanState.QUARANTINED, "retired", ())
    assert [key.split("/")[0] for key in done.deleted].count("crops") > 0
    assert _stored(settings) == []
    assert ingest_all(settings)[case] == CaseOutcome(case, Outcome.DONE)
    scan = catalog.current_scan(case)
    assert scan is not None and scan.patient_id == "PAT-B"
    withdraw.withdraw(settings, "PAT-A", **LETTER)  # it was never hers
    assert catalog.current_scan(case) == scan
    assert str(scan.ct_key) in _stored(settings)
    (right / "mask.nii.gz").unlink()
    assert ingest_all(settings)[case] == CaseOutcome(case, Outcome.DONE)


def test_a_withdrawal_of_the_wrong_patient_does_not_hold_the_right_one(
    settings: Settings, folder: Path, phantom: Phantom
) -> None:
    retire(settings, "CASE", "PAT-A", SAID)
    withdraw.withdraw(settings, "PAT-A", **LETTER)
    write_case(folder.parent.parent / "PAT-B" / "OTHER", phantom, own=False)
    assert ingest_all(settings)["OTHER"] == CaseOutcome("OTHER", Outcome.DONE)


def test_a_retired_copy_is_not_asked_about_when_its_patient_withdraws(
    settings: Settings, catalog: Catalog, folder: Path, phantom: Phantom
) -> None:
    write_case(folder.parent.parent / "PAT-B" / "COPY", phantom, own=False)
    ingest_all(settings)
    retire(settings, "COPY", "PAT-B", SAID)
    before = _stored(settings)
    withdraw.withdraw(settings, "PAT-B", **LETTER)
    assert _stored(settings) == before


def test_what_was_cut_off_comes_back_under_nobody_and_is_finished_by_the_same_call(
    settings: Settings, catalog: Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(retirement, "_empty", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retire(settings, "CASE", "PAT-A", SAID)
    catalog.requeue("CASE")
    assert ingest_all(settings)["CASE"].outcome is Outcome.DONE  # taken in anew, not brought back
    history = catalog.case_history("CASE")
    assert history.current.revision == 3
    assert list(objects_of(open_workspace(settings), history.scans[0])) == []  # its place is the third's now
    retire(settings, "CASE", "PAT-A", SAID)
    with monkeypatch.context() as patch:
        patch.setattr(retirement, "_empty", lambda *_: 1 / 0)
        catalog.requeue("CASE")
        ingest_all(settings)
        with pytest.raises(ZeroDivisionError):
            retire(settings, "CASE", "PAT-A", SAID)
    right = folder.parent.parent / "PAT-B" / "CASE"
    right.parent.mkdir()
    folder.rename(right)
    assert ingest_all(settings)["CASE"].outcome is Outcome.DONE
    scan = catalog.current_scan("CASE")
    retire(settings, "CASE", "PAT-A", SAID)  # finishes, and leaves the right patient's alone
    assert catalog.current_scan("CASE") == scan
    places = {key.split("/")[2] for key in _stored(settings)}
    assert scan is not None and places == {str(scan.source_sha256)[:16]}
    with pytest.raises(ConflictError, match="case CASE is not of patient PAT-A"):
        retire(settings, "CASE", "PAT-A", SAID)


def test_a_label_map_that_a_later_revision_goes_by_stays(
    settings: Settings, catalog: Catalog, folder: Path
) -> None:
    landmark_review.correct_by_map(settings, "CASE", SAID, folder / "vertebrae.nii.gz", "totalseg-v2")
    (folder / "mask.nii.gz").unlink()
    ingest_and_prepare(settings)
    _in_a_dataset(catalog, scan_id=2)
    retire(settings, "CASE", "PAT-A", SAID)
    assert catalog.scan(2).vertebrae_key in _stored(settings)
    assert str(catalog.scan(2).vertebrae_key).split("/")[2] == str(catalog.scan(2).source_sha256)[:16] or (
        catalog.scan(1).ct_key is None
    )


def test_a_retired_case_stays_held_until_it_is_requeued(
    settings: Settings, catalog: Catalog, folder: Path
) -> None:
    for _ in range(2):  # saying it again finishes what was cut off, and changes nothing
        retire(settings, "CASE", "PAT-A", SAID)
    (folder / "ct.nii.gz").touch()
    for _ in range(2):
        outcome = ingest_all(settings)["CASE"]
        assert outcome == CaseOutcome(
            "CASE", Outcome.QUARANTINED, "retired", "retired by Dr A: it is Mrs B's"
        )
    catalog.requeue("CASE")
    assert ingest_all(settings)["CASE"] == CaseOutcome("CASE", Outcome.DONE)
    assert [one.state.value for one in catalog.case_history("CASE").scans] == [
        *["superseded"] * 2,
        "ingested",
    ]


def test_what_a_dataset_version_holds_stays_and_comes_back_as_it_was(
    settings: Settings, catalog: Catalog, folder: Path, phantom: Phantom
) -> None:
    _in_a_dataset(catalog)
    before = _stored(settings)
    done = retire(settings, "CASE", "PAT-A", SAID)
    assert (done.deleted, done.datasets, _stored(settings)) == ((), ("v",), before)
    write_case(folder.parent.parent / "PAT-B" / "OTHER", phantom, own=False)
    assert ingest_all(settings)["OTHER"].reason == "same_image"
    catalog.requeue("CASE")
    assert ingest_all(settings)["CASE"].outcome is Outcome.DONE
    history = catalog.case_history("CASE")
    assert (history.current.scan_id, history.current.state) == (1, ScanState.INGESTED)
    assert history.crop is not None  # of the scan that came back, not of the latest revision


def test_a_held_copy_that_was_taken_out_counts_no_more(
    settings: Settings, catalog: Catalog, folder: Path, phantom: Phantom
) -> None:
    copy = folder.parent.parent / "PAT-B" / "COPY"
    write_case(copy, phantom, own=False)
    ingest_all(settings)
    shutil.rmtree(copy)
    assert catalog.count_held_alike() == {"same_image": 1, "same_person": 0}
    retire(settings, "COPY", "PAT-B", SAID)
    assert catalog.count_held_alike() == {"same_image": 0, "same_person": 0}


def test_what_cannot_be_retired_says_why(settings: Settings, catalog: Catalog, folder: Path) -> None:
    with pytest.raises(NotFoundError, match="no case NONE"):
        retire(settings, "NONE", "PAT-A", SAID)
    with pytest.raises(UserError, match="a word on a case says who and why"):
        retire(settings, "CASE", "PAT-A", Words("Dr A", " "))
    assert catalog.claim(1, "worker", 60)
    with pytest.raises(ConflictError, match="a worker has case CASE in hand"):
        retire(settings, "CASE", "PAT-A", SAID)
    catalog.release(1, "worker")
    withdraw.withdraw(settings, "PAT-A", **LETTER)
    with pytest.raises(WithdrawnError):
        retire(settings, "CASE", "PAT-A", SAID)


def test_the_shell_says_what_became_of_it(
    settings: Settings, catalog: Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SOURCE_URI", "STORE_URI", "CATALOG_URL", "MLFLOW_URI"):
        monkeypatch.setenv(f"RETROLN_{name}", getattr(settings, name.lower()))
    _in_a_dataset(catalog)
    words = ["--reviewer", SAID.reviewer, "--comment", SAID.comment]
    said = CliRunner().invoke(cli, ["review", "retire", "CASE", "--patient", "PAT-A", *words]).output
    assert "CASE of patient PAT-A is retired: 0 objects deleted" in said
    assert "dataset version v holds a scan of it" in said
    assert "retired by Dr A: it is Mrs B's" in CliRunner().invoke(cli, ["status", "CASE"]).output
