"""A CT is told again by its voxels, whatever it is called, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import text

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.records import Mark
from retroln.catalog.states import ScanState
from retroln.cli import cli
from retroln.errors import ConflictError, GateError, UserError
from retroln.imaging.likeness import SKETCH, slice_digests
from retroln.imaging.phantom import Phantom, PhantomSpec, make_phantom
from retroln.imaging.volume import Volume
from retroln.settings import Settings, TrainSpec
from retroln.steps import ingest, likeness, train, withdraw
from retroln.steps.workspace import open_workspace
from tests.dicom_series import KEY, Made, ct_array, lps_grid, series, write
from tests.way import embedded, ingest_all, ingest_and_prepare, write_case

WORDS = {"reason": "letter", "by": "Dr A"}
SAID = ("Dr A", "asked both departments")


class TestDigests:
    @pytest.mark.parametrize(
        "change",
        [
            lambda ct: ct.with_array(ct.array.astype(np.float32) + 0.2),
            lambda ct: ct.with_array(np.where(ct.array < -950, -3024, ct.array).astype(np.int16)),
            lambda ct: ct.with_array(np.flip(ct.array, 0)),
            lambda ct: ct.with_array(np.flip(ct.array, 2)),
        ],
        ids=["as float", "other padding", "mirrored", "upside down"],
    )
    def test_the_same_image_has_the_same(self, phantom: Phantom, change: Callable[[Volume], Volume]) -> None:
        found = slice_digests(phantom.ct)
        assert len(set(found)) == SKETCH
        assert slice_digests(change(phantom.ct)) == found

    def test_a_shorter_copy_shares_some(self, phantom: Phantom) -> None:
        whole = phantom.ct.array
        half = dataclasses.replace(phantom.ct, array=whole[:, :, : whole.shape[2] // 2], grid=_half(phantom))
        assert set(slice_digests(half)) & set(slice_digests(phantom.ct))

    def test_another_image_shares_none(self, phantom: Phantom) -> None:
        other = make_phantom(PhantomSpec(seed=8, spacing_mm=(4.0, 4.0, 5.0), orientation="LPS"))
        noisy = phantom.ct.array.copy()
        noisy[noisy.shape[0] // 2, noisy.shape[1] // 2, :] += 1
        for array in (other.ct.array, noisy, phantom.ct.array + 10):
            assert not set(slice_digests(phantom.ct.with_array(array))) & set(slice_digests(phantom.ct))

    def test_what_shows_nothing_has_none(self, phantom: Phantom) -> None:
        assert slice_digests(phantom.ct.with_array(np.full_like(phantom.ct.array, -1000))) == ()
        assert slice_digests(phantom.ct.with_array((phantom.vertebrae.array > 0) * 255)) == ()


def _half(phantom: Phantom) -> object:
    shape = phantom.ct.grid.shape
    return dataclasses.replace(phantom.ct.grid, shape=(*shape[:2], shape[2] // 2))


@pytest.fixture
def keyed(tmp_path: Path) -> Settings:
    return embedded(tmp_path, pseudonym_key=KEY)


@pytest.fixture
def catalog(keyed: Settings) -> Catalog:
    return open_workspace(keyed).catalog


def _deliver(folder: Path, phantom: Phantom, patient: str, case: str) -> Path:
    place = folder / "source" / patient / case
    write_case(place, phantom, own=False)
    return place


def _study(folder: Path, patient: str, case: str, seed: int = 5, **made: object) -> None:
    place = folder / "source" / patient / case / "dicom"
    write(place, series(ct_array(seed=seed), lps_grid(), Made(**made)))  # type: ignore[arg-type]


def _reasons(outcomes: dict[str, CaseOutcome]) -> dict[str, str | None]:
    return {case: one.reason for case, one in outcomes.items()}


def test_one_ct_under_two_patients_is_taken_once(
    keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom
) -> None:
    _deliver(tmp_path, phantom, "PAT-A", "A")
    other = _deliver(tmp_path, phantom, "PAT-B", "B")
    outcomes = ingest_all(keyed)
    assert _reasons(outcomes) == {"A": None, "B": "same_image"}
    detail = str(outcomes["B"].detail)
    for said in ("case A of another patient", "PAT-B here, PAT-A there", "retroln review different B A"):
        assert said in detail
    assert not list(open_workspace(keyed).store.list("scans/B/"))
    assert _reasons(ingest_all(keyed)) == {"A": None, "B": "same_image"}
    write_case(other, make_phantom(PhantomSpec(seed=9, spacing_mm=(4.0, 4.0, 5.0))), own=False)
    assert ingest_all(keyed)["B"] == CaseOutcome("B", Outcome.DONE)  # the right file at last


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"study": 2}, "same_person"),
        ({"patient_id": "other", "number": 4, "study": 1}, "same_person"),
        ({"patient_id": "other"}, "same_image"),
        ({"patient_id": "other", "study": 2, "number": 4}, None),
    ],
    ids=["PatientID", "study", "objects", "nothing"],
)
def test_a_person_is_told_by_what_the_headers_say(
    keyed: Settings, tmp_path: Path, made: dict[str, object], reason: str | None
) -> None:
    _study(tmp_path, "PAT-A", "A")
    _study(tmp_path, "PAT-B", "B", seed=6, **made)
    assert _reasons(ingest_all(keyed)) == {"A": None, "B": reason}


def test_one_patient_may_bring_the_same_twice(
    keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom
) -> None:
    for case in ("A", "AGAIN"):
        _deliver(tmp_path, phantom, "PAT-A", case)
    assert _reasons(ingest_all(keyed)) == {"A": None, "AGAIN": None}
    assert catalog.same_person("PAT-A") == []


def test_a_person_may_say_that_they_are_different(
    keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom
) -> None:
    for name in ("A", "B"):
        _deliver(tmp_path, phantom, f"PAT-{name}", name)
    ingest_all(keyed)
    with pytest.raises(UserError, match="says who and why"):
        likeness.tell_apart(keyed, ["A", "B"], "Dr A", " ")
    with pytest.raises(ConflictError, match="not of different patients"):
        likeness.tell_apart(keyed, ["A"], *SAID)
    for _ in range(2):
        likeness.tell_apart(keyed, ["B", "A"], *SAID)
    assert _reasons(ingest_all(keyed)) == {"A": None, "B": None}
    assert catalog.same_person("PAT-A") == []
    assert catalog.members_alike([1, 3]) == [("PAT-A", "PAT-B", True)]
    withdraw.withdraw(keyed, "PAT-A", **WORDS)
    assert catalog.withdrawn_patients() == {"PAT-A"}
    scan = catalog.current_scan("B")
    assert scan is not None and scan.state is ScanState.INGESTED


@pytest.mark.parametrize("asked", ["PAT-A", "PAT-B"])
def test_whoever_of_the_two_withdraws_the_image_goes(
    keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom, asked: str
) -> None:
    for name in ("A", "B"):
        _deliver(tmp_path, phantom, f"PAT-{name}", name)
    ingest_all(keyed)
    found = withdraw.withdraw(keyed, asked, **WORDS)
    assert {asked, *(one.patient_id for one in found.also)} == {"PAT-A", "PAT-B"}
    assert catalog.withdrawn_patients() == {"PAT-A", "PAT-B"}
    assert not list(open_workspace(keyed).store.list("scans/"))
    _deliver(tmp_path, phantom, "PAT-C", "C")
    outcome = ingest_all(keyed)["C"]
    assert (outcome.reason, "took back consent" in str(outcome.detail)) == ("withdrawn", True)
    assert not list(open_workspace(keyed).store.list("scans/"))


def test_the_shell_says_what_else_is_withdrawn(
    keyed: Settings, tmp_path: Path, phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A", "B"):
        _deliver(tmp_path, phantom, f"PAT-{name}", name)
    ingest_all(keyed)
    for name in ("SOURCE_URI", "STORE_URI", "CATALOG_URL", "MLFLOW_URI"):
        monkeypatch.setenv(f"RETROLN_{name}", getattr(keyed, name.lower()))
    said = CliRunner().invoke(cli, ["withdraw", "PAT-B", "--dry-run"]).output
    assert "IS HERE UNDER OTHER IDS TOO: PAT-B and PAT-A." in said
    assert "scans/A/" in said
    words = ["--reviewer", SAID[0], "--comment", SAID[1]]
    said = CliRunner().invoke(cli, ["review", "different", "B", "A", *words]).output
    assert said == "noted: B, A are of different people\nB was held for it; the next run takes it up\n"
    assert "OTHER IDS" not in CliRunner().invoke(cli, ["withdraw", "PAT-B", "--dry-run"]).output


class TestAnOlderCatalog:
    @pytest.fixture
    def older(self, keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom) -> Settings:
        """Two patients with one CT, prepared before anything was marked."""
        for name in ("A", "B"):
            _deliver(tmp_path, phantom, f"PAT-{name}", name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ingest, "marks_of", lambda *_: frozenset())
            ingest_and_prepare(keyed)
        return keyed

    def test_is_looked_through_once(self, older: Settings, catalog: Catalog) -> None:
        with pytest.raises(UserError, match="2 scans of an older RetroLN"):
            likeness.require_identified(older)
        assert likeness.identify(older) == {"A": "", "B": "same_image"}
        likeness.require_identified(older)
        assert likeness.identify(older) == {}
        assert catalog.count_held_alike() == {"same_image": 1, "same_person": 0}
        with pytest.raises(ConflictError, match="case B shows the same image as case A"):
            catalog.requeue("B")
        likeness.tell_apart(older, ["A", "B"], *SAID)
        scan = catalog.current_scan("B")
        assert scan is not None and scan.state is ScanState.PREPARED

    def test_is_not_trained_on_before(self, older: Settings, catalog: Catalog) -> None:
        for scan in catalog.scans():
            catalog.mark_scan(scan.scan_id, [Mark("slice", "same")])
        with pytest.raises(GateError, match="PAT-A and PAT-B"):
            train.publish_dataset(older, TrainSpec())


def test_an_image_that_was_trained_on_stays_known(
    keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom
) -> None:
    """Its case shows another CT now; the model has seen this one."""
    folder = _deliver(tmp_path, phantom, "PAT-A", "A")
    ingest_all(keyed)
    with catalog.database.engine.begin() as connection:
        for statement in (
            "INSERT INTO datasets VALUES (1, 'v', 'k', '2026-01-01')",
            "INSERT INTO dataset_members VALUES (1, 1, 'A', 'PAT-A', 'train', 0)",
        ):
            connection.execute(text(statement))
    write_case(folder, make_phantom(PhantomSpec(seed=9, spacing_mm=(4.0, 4.0, 5.0))), own=False)
    _deliver(tmp_path, phantom, "PAT-B", "B")
    assert _reasons(ingest_all(keyed)) == {"A": None, "B": "same_image"}
