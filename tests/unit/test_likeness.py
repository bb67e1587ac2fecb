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
    assert catalog.linked("PAT-A") == []


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
    assert [(one.patient_id, one.told_apart) for one in catalog.linked("PAT-A")] == [("PAT-B", True)]
    assert catalog.members_alike([1, 3]) == [("PAT-A", "PAT-B", True)]
    withdraw.withdraw(keyed, "PAT-A", **WORDS)
    assert catalog.withdrawn_patients() == {"PAT-A"}
    scan = catalog.current_scan("B")
    assert scan is not None and scan.state is ScanState.INGESTED


class TestWithdrawals:
    """There is no way back, so nobody goes with another without a word on it."""

    @pytest.fixture(autouse=True)
    def _twins(self, keyed: Settings, tmp_path: Path, phantom: Phantom) -> None:
        for name in ("A", "B"):
            _deliver(tmp_path, phantom, f"PAT-{name}", name)
        ingest_all(keyed)

    def test_a_copy_that_was_never_stored_is_in_no_way_and_named(
        self, keyed: Settings, catalog: Catalog
    ) -> None:
        (copy,) = withdraw.withdraw(keyed, "PAT-A", **WORDS).held_copies
        assert (copy.case_id, copy.source_uri["ct"]) == ("B", "PAT-B/B/ct.nii.gz")
        assert catalog.withdrawn_patients() == {"PAT-A"}
        assert not list(open_workspace(keyed).store.list("scans/"))
        held = ingest_all(keyed)["B"]
        assert (held.reason, "took back consent" in str(held.detail)) == ("withdrawn", True)

    def test_whose_ct_is_stored_under_another_id_needs_a_word(
        self, keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom
    ) -> None:
        with pytest.raises(ConflictError, match=r"--also PAT-A; .* `retroln review different B A`"):
            withdraw.withdraw(keyed, "PAT-B", **WORDS)
        assert catalog.withdrawn_patients() == frozenset()
        withdraw.withdraw(keyed, "PAT-B", also=["PAT-A"], **WORDS)
        assert catalog.withdrawn_patients() == {"PAT-A", "PAT-B"}
        assert not list(open_workspace(keyed).store.list("scans/"))
        _deliver(tmp_path, phantom, "PAT-C", "C")
        outcome = ingest_all(keyed)["C"]
        assert (outcome.reason, "took back consent" in str(outcome.detail)) == ("withdrawn", True)
        assert not list(open_workspace(keyed).store.list("scans/"))
        for other in ("A", "B"):  # it was somebody else's all the same
            assert ingest_all(keyed)["C"].reason == "withdrawn"
            assert likeness.tell_apart(keyed, [other, "C"], *SAID) == ["C"]
        assert ingest_all(keyed)["C"].outcome is Outcome.DONE

    def test_who_is_told_apart_stays(self, keyed: Settings, catalog: Catalog, tmp_path: Path) -> None:
        likeness.tell_apart(keyed, ["A", "B"], *SAID)
        ingest_all(keyed)
        withdraw.withdraw(keyed, "PAT-A", **WORDS)
        assert catalog.withdrawn_patients() == {"PAT-A"}
        scan = catalog.current_scan("B")
        assert scan is not None and scan.state is ScanState.INGESTED

    def test_a_copy_that_was_held_and_replaced_binds_nobody(
        self, keyed: Settings, catalog: Catalog, tmp_path: Path
    ) -> None:
        write_case(tmp_path / "source" / "PAT-B" / "B", _other(), own=False)
        assert ingest_all(keyed)["B"].outcome is Outcome.DONE
        withdraw.withdraw(keyed, "PAT-B", **WORDS)
        assert catalog.withdrawn_patients() == {"PAT-B"}

    def test_of_several_all_are_recorded_before_one_is_removed(
        self, keyed: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(withdraw, "_empty", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            withdraw.withdraw(keyed, "PAT-B", also=["PAT-A"], **WORDS)
        assert catalog.withdrawn_patients() == {"PAT-A", "PAT-B"}

    def test_the_shell_asks_for_the_word(
        self, keyed: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("SOURCE_URI", "STORE_URI", "CATALOG_URL", "MLFLOW_URI"):
            monkeypatch.setenv(f"RETROLN_{name}", getattr(keyed, name.lower()))
        said = CliRunner().invoke(cli, ["withdraw", "PAT-B", "--dry-run"]).output
        assert "MAY BE HERE AS PATIENT PAT-A, TOO: case A shows the same image." in said
        said = CliRunner().invoke(cli, ["withdraw", "PAT-A", "--dry-run"]).output
        assert "PAT-B/B/ct.nii.gz (case B of PAT-B, held as same_image)" in said
        said = CliRunner().invoke(cli, ["withdraw", "PAT-B", "--also", "PAT-A", "--dry-run"]).output
        assert "scans/A/" in said
        assert "MAY BE" not in said
        words = ["--reviewer", SAID[0], "--comment", SAID[1]]
        said = CliRunner().invoke(cli, ["review", "different", "B", "A", *words]).output
        assert said == "noted: B, A are of different people\nB was held for it; the next run takes it up\n"
        write_case(tmp_path / "source" / "PAT-C" / "C", _other(), own=False)
        ingest_all(keyed)
        said = CliRunner().invoke(cli, ["review", "different", "C", "A", *words]).output
        assert "nothing is known that A and C have in common" in said
        assert "MAY BE" not in CliRunner().invoke(cli, ["withdraw", "PAT-B", "--dry-run"]).output
        assert f"PAT-B, by {SAID[0]}" in CliRunner().invoke(cli, ["status", "A"]).output
        assert f"are different people, by {SAID[0]}" in CliRunner().invoke(cli, ["status", "B"]).output


def _other() -> Phantom:
    return make_phantom(PhantomSpec(seed=9, spacing_mm=(4.0, 4.0, 5.0), orientation="LPS"))


class TestWhatIsMended:
    def test_a_copy_goes_on_when_the_other_is_no_copy_any_more(
        self, keyed: Settings, tmp_path: Path, phantom: Phantom
    ) -> None:
        folder = _deliver(tmp_path, phantom, "PAT-A", "A")
        _deliver(tmp_path, phantom, "PAT-B", "B")
        assert _reasons(ingest_all(keyed)) == {"A": None, "B": "same_image"}
        write_case(folder, _other(), own=False)
        assert _reasons(ingest_all(keyed)) == {"A": None, "B": "same_image"}
        assert ingest_all(keyed)["B"].outcome is Outcome.DONE

    def test_two_patients_files_that_were_swapped_can_be_put_right(
        self, keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom
    ) -> None:
        other, folders = _other(), [tmp_path / "source" / f"PAT-{name}" / name for name in ("A", "B")]
        for folder, made in zip(folders, (other, phantom), strict=True):
            write_case(folder, made, own=False)
        ingest_all(keyed)
        for folder, made in zip(folders, (phantom, other), strict=True):
            write_case(folder, made, own=False)
        assert ingest_all(keyed)["A"].reason == "same_image"
        for _ in range(2):
            outcomes = ingest_all(keyed)
        assert {one.outcome for one in outcomes.values()} == {Outcome.SKIPPED}
        assert catalog.held_deliveries() == []
        assert {scan.revision for scan in catalog.scans()} == {2}

    def test_what_lay_swapped_for_a_night_goes_with_its_patient(
        self, keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom
    ) -> None:
        folders = [tmp_path / "source" / f"PAT-{name}" / name for name in ("A", "B")]
        for made in ((_other(), phantom), (phantom, _other())):
            for folder, one in zip(folders, made, strict=True):
                write_case(folder, one, own=False)
            for _ in range(3):
                ingest_all(keyed)
        with pytest.raises(ConflictError, match="may be here under other ids"):
            withdraw.withdraw(keyed, "PAT-A", **WORDS)
        likeness.tell_apart(keyed, ["A", "B"], *SAID)
        withdraw.withdraw(keyed, "PAT-A", **WORDS)
        (left,) = {info.key.split("/")[2] for info in open_workspace(keyed).store.list("scans/")}
        history = catalog.case_history("B")
        assert str(history.current.source_sha256).startswith(left)
        assert [(one.state.value, one.ct_key is None) for one in history.scans] == [
            ("superseded", True),
            ("ingested", False),
        ]

    def test_a_person_is_told_through_a_held_case(
        self, keyed: Settings, catalog: Catalog, tmp_path: Path
    ) -> None:
        """A shares its study with B, which is held, and B its PatientID with C."""
        _study(tmp_path, "PAT-A", "A", patient_id="export 17")
        _study(tmp_path, "PAT-B", "B", seed=6, number=4)
        _study(tmp_path, "PAT-C", "C", seed=7, study=2)
        assert _reasons(ingest_all(keyed)) == {"A": None, "B": "same_person", "C": None}
        assert catalog.members_alike([1, 3]) == [("PAT-A", "PAT-C", False)]


class TestAnOlderCatalog:
    @pytest.fixture
    def older(self, keyed: Settings, catalog: Catalog, tmp_path: Path, phantom: Phantom) -> Settings:
        """Two patients with one CT, prepared before anything was marked."""
        for name in ("A", "B"):
            _deliver(tmp_path, phantom, f"PAT-{name}", name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ingest, "marks_of", lambda *_: frozenset())
            ingest_and_prepare(keyed)
        with catalog.database.engine.begin() as connection:
            connection.execute(text("UPDATE scans SET identified = false"))
        return keyed

    def test_is_looked_through_once(self, older: Settings, catalog: Catalog) -> None:
        with pytest.raises(UserError, match="2 scans of an older RetroLN"):
            likeness.require_identified(older)
        assert likeness.identify(older) == {"A": "", "B": "same_image"}
        likeness.require_identified(older)
        assert likeness.identify(older) == {}
        assert catalog.scan(2).reason == "same_image"
        assert catalog.count_held_alike() == {"same_image": 1, "same_person": 0}
        with pytest.raises(ConflictError, match="case B shows the same image as case A"):
            catalog.requeue("B")
        likeness.tell_apart(older, ["A", "B"], *SAID)
        scan = catalog.current_scan("B")
        assert scan is not None and scan.state is ScanState.PREPARED

    def test_is_neither_trained_on_nor_withdrawn_before(self, older: Settings) -> None:
        for call in (
            lambda: train.publish_dataset(older, TrainSpec()),
            lambda: withdraw.withdraw(older, "PAT-A", **WORDS),
        ):
            with pytest.raises(UserError, match="2 scans of an older RetroLN"):
                call()

    def test_what_shares_an_image_is_never_frozen(self, older: Settings, catalog: Catalog) -> None:
        for statement in (
            "UPDATE scans SET identified = true",
            "INSERT INTO identity_marks VALUES (1, 'slice', 'same'), (2, 'slice', 'same')",
        ):
            with catalog.database.engine.begin() as connection:
                connection.execute(text(statement))
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
    likeness.tell_apart(keyed, ["A", "B"], *SAID)  # it was filed under A by mistake
    assert ingest_all(keyed)["B"].outcome is Outcome.DONE
    assert catalog.shown_in_training() == {"PAT-A", "PAT-B"}  # never to be locked away for testing
