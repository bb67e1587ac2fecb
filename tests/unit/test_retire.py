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
from retroln.steps import withdraw
from retroln.steps.retire import retire
from retroln.steps.words import Words
from retroln.steps.workspace import open_workspace
from tests.way import embedded, ingest_all, ingest_and_prepare, write_case

SAID = Words("Dr A", "it is Mrs B's")


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


def _in_a_dataset(catalog: Catalog) -> None:
    with catalog.database.engine.begin() as connection:
        for statement in (
            "INSERT INTO datasets VALUES (1, 'v', 'k', '2026-01-01')",
            "INSERT INTO dataset_members VALUES (1, 1, 'CASE', 'PAT-A', 'train', 0)",
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
    done = retire(settings, "CASE", SAID)
    assert (done.scan.state, done.scan.reason, done.datasets) == (ScanState.QUARANTINED, "retired", ())
    assert [key.split("/")[0] for key in done.deleted].count("crops") > 0
    assert _stored(settings) == []
    assert ingest_all(settings)[case] == CaseOutcome(case, Outcome.DONE)
    scan = catalog.current_scan(case)
    assert scan is not None and scan.patient_id == "PAT-B"
    withdraw.withdraw(settings, "PAT-A", reason="letter", by="Dr A")  # it was never hers
    assert catalog.current_scan(case) == scan
    assert str(scan.ct_key) in _stored(settings)


def test_a_retired_case_stays_held_until_it_is_requeued(
    settings: Settings, catalog: Catalog, folder: Path
) -> None:
    for _ in range(2):  # saying it again finishes what was cut off, and changes nothing
        retire(settings, "CASE", SAID)
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
    done = retire(settings, "CASE", SAID)
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
    retire(settings, "COPY", SAID)
    assert catalog.count_held_alike() == {"same_image": 0, "same_person": 0}


def test_what_cannot_be_retired_says_why(settings: Settings, catalog: Catalog, folder: Path) -> None:
    with pytest.raises(NotFoundError, match="no case NONE"):
        retire(settings, "NONE", SAID)
    with pytest.raises(UserError, match="a word on a case says who and why"):
        retire(settings, "CASE", Words("Dr A", " "))
    assert catalog.claim(1, "worker", 60)
    with pytest.raises(ConflictError, match="a worker has case CASE in hand"):
        retire(settings, "CASE", SAID)
    catalog.release(1, "worker")
    withdraw.withdraw(settings, "PAT-A", reason="letter", by="Dr A")
    with pytest.raises(WithdrawnError):
        retire(settings, "CASE", SAID)


def test_the_shell_says_what_became_of_it(
    settings: Settings, catalog: Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SOURCE_URI", "STORE_URI", "CATALOG_URL", "MLFLOW_URI"):
        monkeypatch.setenv(f"RETROLN_{name}", getattr(settings, name.lower()))
    _in_a_dataset(catalog)
    words = ["--reviewer", SAID.reviewer, "--comment", SAID.comment]
    said = CliRunner().invoke(cli, ["review", "retire", "CASE", *words]).output
    assert "CASE of patient PAT-A is retired: 0 objects deleted" in said
    assert "dataset version v holds a scan of it" in said
    assert "retired by Dr A: it is Mrs B's" in CliRunner().invoke(cli, ["status", "CASE"]).output
