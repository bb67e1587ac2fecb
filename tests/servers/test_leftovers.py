"""A patient withdraws while a step is between writing and recording: nothing stays, and others lose nothing.

On SQLite with a folder, and on PostgreSQL with a bucket.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import select

from retroln.catalog import scans
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.models import Claim
from retroln.catalog.records import DatasetDraft, MemberDraft, ScanDraft, ScanRecord
from retroln.catalog.states import ScanState
from retroln.cli import cli
from retroln.errors import ConflictError, RefusedError, UnavailableError, WithdrawnError
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom
from retroln.settings import Settings, TrainSpec
from retroln.steps import infer, ingest, landmark_queue, landmark_review, leftovers, prepare, train, withdraw
from retroln.steps.leftovers import Swept
from retroln.steps.runs import Run
from retroln.steps.words import Words
from retroln.steps.workspace import Workspace, open_workspace
from retroln.storage.open import open_store
from tests.places import make_settings
from tests.way import own_ct

WORDS = {"reason": "letter of 3 May", "by": "Dr A"}
PARTS: Mapping[str, tuple[str, ...]] = {
    "A-CT1": ("ct", "vertebrae"),
    "A-CT2": ("ct",),
    "B-CT1": ("ct", "vertebrae", "mask"),
}
"""What each case comes with: A-CT2 is held for want of landmarks."""


@dataclass
class Platform:
    """Two patients, taken in; a worker of theirs may be stopped for longer than its lease."""

    settings: Settings
    folder: Path

    @property
    def workspace(self) -> Workspace:
        return open_workspace(self.settings)

    @property
    def catalog(self) -> Catalog:
        return self.workspace.catalog

    def deliver(self, phantom: Phantom) -> None:
        source = open_store(self.settings.source_uri, self.settings)
        for case_id, parts in PARTS.items():
            ct = own_ct(phantom.ct, f"PAT-{case_id[0]}")
            volumes = {"ct": ct, "vertebrae": phantom.vertebrae, "mask": phantom.nodes}
            for name in parts:
                path = self.folder / "made.nii.gz"
                nifti.write_source(path, volumes[name])
                source.put_file(path, f"PAT-{case_id[0]}/{case_id}/{name}.nii.gz")

    def scan(self, case_id: str) -> ScanRecord:
        found = self.catalog.current_scan(case_id)
        assert found is not None
        return found

    def prepare(self, *case_ids: str) -> list[CaseOutcome]:
        run = Run.begin(self.settings, "prepare", {})
        ids = [self.scan(case_id).scan_id for case_id in case_ids]
        outcomes = prepare.prepare(self.settings, ids, run_id=run.run_id, owner="slow")
        assert self.catalog.outcomes_of(run.run_id) == sorted(outcomes, key=lambda one: one.case_id)
        return outcomes

    def withdraw(self) -> None:
        """As it happens to a worker that was stopped for longer than its lease."""
        with self.catalog.database.writing() as session:
            for claim in session.scalars(select(Claim)):
                claim.expires_at = datetime.now(UTC) - timedelta(seconds=1)
        withdraw.withdraw(self.settings, "PAT-A", **WORDS)
        assert self.objects("A-CT") == {}

    def withdrawing_before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, before which PAT-A withdraws."""

        def late(*arguments: Any, **named: Any) -> Any:
            self.withdraw()
            return function(*arguments, **named)

        return late

    def objects(self, word: str) -> dict[str, str]:
        """sha256 of the stored objects whose key holds a word."""
        store = self.workspace.store
        keys = [info.key for info in store.list() if word in info.key]
        return {key: hashlib.sha256(store.get_bytes(key)).hexdigest() for key in keys}

    def noted(self) -> set[str]:
        return {one.name for one in self.catalog.withdrawn_items("PAT-A") if one.kind == "object"}


@pytest.fixture(params=["embedded", "servers"])
def platform(request: pytest.FixtureRequest, tmp_path: Path, phantom: Phantom) -> Iterator[Platform]:
    made = Platform(make_settings(request.param, request, tmp_path), tmp_path)
    made.deliver(phantom)
    run = Run.begin(made.settings, "ingest", {})
    run.finish(ingest.ingest(made.settings, run_id=run.run_id))
    yield made
    made.catalog.close()


def _skipped(case_id: str) -> tuple[str, Outcome, str]:
    return case_id, Outcome.SKIPPED, "withdrawn"


def _brief(outcomes: list[CaseOutcome]) -> list[tuple[str, Outcome, str | None]]:
    return [(one.case_id, one.outcome, one.reason) for one in outcomes]


def _makes_landmarks(workspace: Workspace, scan: ScanRecord) -> None:
    """As TotalSegmentator's labels are stored before the crop."""
    base = f"scans/{scan.case_id}/{str(scan.source_sha256)[:16]}/totalseg-{'0' * 16}/"
    workspace.store.put_bytes(b"labels", base + "vertebrae.nii.gz")


class TestPrepare:
    def test_a_crop_of_a_patient_who_withdrew_meanwhile_is_taken_back(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store_region, stored = prepare._store_region, []

        def late(workspace: Workspace, scan: ScanRecord, *more: Any) -> Any:
            if scan.patient_id == "PAT-A":
                platform.withdraw()
                _makes_landmarks(workspace, scan)
            made = store_region(workspace, scan, *more)
            stored.extend(platform.objects("A-CT"))
            return made

        monkeypatch.setattr(prepare, "_store_region", late)
        first, second = platform.prepare("A-CT1", "B-CT1")
        assert _brief([first]) == [_skipped("A-CT1")]
        assert second == CaseOutcome("B-CT1", Outcome.DONE)
        assert [key.rsplit("/", 1)[-1] for key in stored] == ["ct.nii.gz", "roi.json", "vertebrae.nii.gz"]
        assert platform.objects("A-CT") == {}
        assert set(stored) <= platform.noted()
        assert len(platform.objects("B-CT1")) == 4 + 3
        assert platform.scan("A-CT1").state is ScanState.WITHDRAWN
        assert platform.catalog.claims() == []
        assert leftovers.sweep(platform.settings) == Swept()

    def test_the_picture_of_a_case_held_for_its_landmarks_is_taken_back(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        late = platform.withdrawing_before(landmark_queue._store_picture)
        monkeypatch.setattr(landmark_queue, "_store_picture", late)
        assert _brief(platform.prepare("A-CT2")) == [_skipped("A-CT2")]
        assert platform.objects("A-CT") == {}
        assert any("landmarks-" in key for key in platform.noted())

    def test_an_error_on_the_way_takes_back_as_well(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(workspace: Workspace, scan: ScanRecord, *_: Any) -> Any:
            platform.withdraw()
            _makes_landmarks(workspace, scan)
            raise OSError("disk full")

        monkeypatch.setattr(prepare, "_store_region", breaks)
        assert _brief(platform.prepare("A-CT1")) == [_skipped("A-CT1")]
        assert platform.objects("A-CT") == {}


def test_a_prediction_of_a_patient_who_withdrew_meanwhile_is_taken_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.prepare("A-CT1", "B-CT1")
    model: Any = SimpleNamespace(name="retroln", version=3)

    def page(_: Workspace, __: Any, ___: Any, scan: ScanRecord, *____: Any) -> str:
        if scan.patient_id == "PAT-A":
            platform.withdraw()
        return "a page"

    monkeypatch.setattr(infer, "_predictor", lambda *_: None)
    monkeypatch.setattr(
        infer, "_predict", lambda _, ct, __: ct.with_array(np.zeros(ct.grid.shape, np.uint16))
    )
    monkeypatch.setattr(infer, "_page", page)
    run_id = Run.begin(platform.settings, "infer", {}).run_id
    ids = [platform.scan(case_id).scan_id for case_id in ("A-CT1", "B-CT1")]
    outcomes = infer.infer(platform.settings, model, ids, run_id=run_id, owner="slow")
    assert _brief(outcomes) == [_skipped("A-CT1"), ("B-CT1", Outcome.DONE, None)]
    assert platform.objects("A-CT") == {}
    assert {key.rsplit("/", 1)[-1] for key in platform.noted() if key.startswith("predictions/")} == {
        "labels.nii.gz",
        "nodes.csv",
        "page.html",
    }
    assert len(platform.objects("predictions/retroln-v3/B-CT1/")) == 3


def test_corrected_landmarks_of_a_patient_who_withdrew_meanwhile_are_taken_back(
    platform: Platform, phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.prepare("A-CT2")
    labels = platform.folder / "labels.nii.gz"
    nifti.write_source(labels, phantom.vertebrae)
    late = platform.withdrawing_before(landmark_review._store)
    monkeypatch.setattr(landmark_review, "_store", late)
    with pytest.raises(WithdrawnError, match="A-CT2 took back consent"):
        landmark_review.correct_by_map(
            platform.settings, "A-CT2", Words("Dr B", "drawn"), labels, "totalseg-v2"
        )
    assert platform.objects("A-CT") == {}
    assert any("/vertebrae-" in key for key in platform.noted())


def test_a_dataset_version_of_a_patient_who_withdrew_meanwhile_leaves_no_manifest(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.prepare("B-CT1")
    pairs, add_dataset = platform.catalog.labelled_prepared(), Catalog.add_dataset

    def late(self: Catalog, draft: DatasetDraft) -> Any:
        self.begin_withdrawal("PAT-B", "letter", "Dr A")
        return add_dataset(self, draft)

    ((scan, _),) = pairs
    member = MemberDraft(scan_id=scan.scan_id, patient_id="PAT-B", case_id="B-CT1", role="train", fold=0)
    monkeypatch.setattr(train, "_require_enough", lambda *_: None)
    monkeypatch.setattr(train, "_require_containment", lambda *_: None)
    monkeypatch.setattr(train, "_members", lambda *_: [member])
    monkeypatch.setattr(Catalog, "add_dataset", late)
    with pytest.raises(ConflictError, match="tombstoned"):
        train.publish_dataset(platform.settings, TrainSpec(profile="demo", n_folds=2))
    assert platform.objects("datasets/") == {}


def _killed(settings: Settings, folder: Path) -> None:
    """A worker that dies between storing and recording, when PAT-A has withdrawn."""
    platform, store_region = Platform(settings, folder), prepare._store_region

    def dies(*arguments: Any) -> Any:
        platform.withdraw()
        store_region(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    prepare._store_region = dies
    platform.prepare("A-CT1")


class TestSweep:
    def test_what_a_killed_worker_left_is_removed(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        others = platform.objects("B-CT1")
        worker = multiprocessing.get_context("spawn").Process(
            target=_killed, args=(platform.settings, platform.folder)
        )
        worker.start()
        worker.join(300)
        assert worker.exitcode == -signal.SIGKILL
        left = platform.objects("A-CT1")
        assert {key.rsplit("/", 1)[-1] for key in left} == {"ct.nii.gz", "roi.json"}
        monkeypatch.setattr("retroln.cli.review.Settings", lambda: platform.settings)
        said = CliRunner().invoke(cli, ["reconcile"], catch_exceptions=False).output
        assert "note: 2 objects that came of 1 withdrawn patients after the withdrawal are removed" in said
        assert platform.objects("A-CT") == {}
        assert set(left) <= platform.noted()
        assert platform.objects("B-CT1") == others
        assert leftovers.sweep(platform.settings) == Swept()
        assert platform.catalog.claims() == []

    def test_it_lists_under_the_patients_own_prefixes_alone(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_audit = platform.catalog.add_audit
        add_audit(action="promote", model_name="other", version=3, reviewer="r", comment="c")
        mine = str(platform.scan("A-CT1").source_sha256)[:16]
        theirs = str(platform.scan("B-CT1").source_sha256)[:16]
        platform.withdraw()
        base = "predictions/other-v3"
        keys = {
            f"{base}/A-CT1/{mine}/page.html",
            f"crops/A-CT2/{'9' * 16}-{'0' * 16}/ct.nii.gz",
            f"scans/A-CT1/{mine}/totalseg-0/vertebrae.json",
        }
        kept = {
            f"{base}/B-CT1/{theirs}/page.html",
            f"{base}/A-CT10/{theirs}/page.html",
            f"scans/A-CT10/{theirs}/ct.nii.gz",
        }
        for key in keys | kept:
            platform.workspace.store.put_bytes(b"late", key)
        asked, store = [], type(platform.workspace.store)
        listing: Callable[..., Any] = store.list

        def noting(self: Any, prefix: str = "") -> Any:
            asked.append(prefix)
            return listing(self, prefix)

        with monkeypatch.context() as patch:
            patch.setattr(store, "list", noting)
            patch.setattr(withdraw, "finish", lambda *_, **__: SimpleNamespace(objects=keys))
            assert leftovers.sweep(platform.settings) == Swept(1, 3)
        assert asked
        assert all("/A-CT1/" in prefix or "/A-CT2/" in prefix for prefix in asked)
        assert leftovers.sweep(platform.settings) == Swept(1, 3)
        assert platform.objects("A-CT1/") | platform.objects("A-CT2/") == {}
        assert kept <= set(platform.objects(""))

    def test_a_scan_that_was_recorded_after_the_withdrawal_is_emptied(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As it could be before recording it asked for consent."""
        platform.withdraw()
        key = f"scans/A-CT3/{'c' * 16}/ct.nii.gz"
        platform.workspace.store.put_bytes(b"late", key)
        draft = ScanDraft(
            case_id="A-CT3",
            patient_id="PAT-A",
            source_uri={"ct": "PAT-A/A-CT3/ct.nii.gz"},
            source_fingerprint="f",
            source_sha256="c" * 64,
            ct_key=key,
        )
        with monkeypatch.context() as patch:
            patch.setattr(scans, "hold_consent", lambda *_: None)
            platform.catalog.add_scan(draft, None)
        assert leftovers.sweep(platform.settings) == Swept(1, 1)
        scan = platform.scan("A-CT3")
        assert (scan.state, scan.ct_key, scan.source_uri) == (ScanState.WITHDRAWN, None, {})
        assert platform.objects("A-CT3") == {}

    def test_manifests_and_trainings_on_the_patient_are_removed(self, platform: Platform) -> None:
        platform.prepare("B-CT1")
        scan, version = platform.scan("B-CT1"), "d" * 64
        member = MemberDraft(scan_id=scan.scan_id, patient_id="PAT-B", case_id="B-CT1", role="train", fold=0)
        platform.catalog.add_dataset(
            DatasetDraft(version=version, manifest_key=f"datasets/{version[:16]}/m", members=(member,))
        )
        withdraw.withdraw(platform.settings, "PAT-B", **WORDS)
        for key in (f"training/{version[:16]}/spec/fold_0/sealed.json", f"datasets/{version[:16]}/m"):
            platform.workspace.store.put_bytes(b"late", key)
        platform.workspace.store.put_bytes(b"others'", f"training/{'e' * 16}/spec/fold_0/sealed.json")
        assert leftovers.sweep(platform.settings) == Swept(1, 2)
        assert list(platform.objects("training/")) == [f"training/{'e' * 16}/spec/fold_0/sealed.json"]

    def test_it_waits_for_a_worker_that_has_a_scan_in_hand(self, platform: Platform) -> None:
        scan = platform.scan("A-CT1")
        platform.withdraw()
        platform.workspace.store.put_bytes(b"late", f"crops/A-CT1/{'0' * 16}-{'0' * 16}/ct.nii.gz")
        platform.catalog.claim(scan.scan_id, "worker-7", 3600.0)
        found = leftovers.sweep(platform.settings)
        assert found == Swept(in_hand=1)
        assert found.remarks() == ["a worker has scans of 1 withdrawn patients in hand; they wait for it"]
        assert len(platform.objects("A-CT1")) == 1
        platform.catalog.release(scan.scan_id, "worker-7")
        assert leftovers.sweep(platform.settings) == Swept(1, 1)
        assert platform.objects("A-CT1") == {}

    @pytest.mark.parametrize("again", [leftovers.sweep, lambda settings: withdraw.finish(settings, "PAT-A")])
    def test_what_is_in_the_making_under_a_shared_case_id_stays(
        self, platform: Platform, again: Callable[[Settings], Any]
    ) -> None:
        """Case X came under PAT-A once and is PAT-B's now, of whom a revision is being taken in."""
        catalog, store = platform.catalog, platform.workspace.store
        for patient_id, letter in (("PAT-A", "a"), ("PAT-B", "b")):
            store.put_bytes(b"stored", f"scans/X/{letter * 16}/ct.nii.gz")
            catalog.add_scan(
                ScanDraft(
                    case_id="X",
                    patient_id=patient_id,
                    source_uri={},
                    source_fingerprint=letter,
                    source_sha256=letter * 64,
                    ct_key=f"scans/X/{letter * 16}/ct.nii.gz",
                ),
                None,
            )
        in_the_making = f"scans/X/{'c' * 16}/vertebrae.nii.gz"
        store.put_bytes(b"not recorded yet", in_the_making)
        kept = {in_the_making, f"scans/X/{'b' * 16}/ct.nii.gz"}
        withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
        assert set(platform.objects("/X/")) == kept
        store.put_bytes(b"late", f"crops/X/{'a' * 16}-{'0' * 16}/ct.nii.gz")
        again(platform.settings)
        assert set(platform.objects("/X/")) == kept


class Killed(BaseException):
    """What a process that is killed does not come back from."""


def _dies(*_: Any, **__: Any) -> Any:
    raise Killed


class TestIngestThatDied:
    """Its objects are stored and the new case is not recorded; nobody will deliver it again."""

    def ingest(self, platform: Platform, phantom: Phantom, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        """Take in A-CT3 until just before it is recorded; returns the keys that are left."""
        source = open_store(platform.settings.source_uri, platform.settings)
        path = platform.folder / "made.nii.gz"
        nifti.write_source(path, phantom.ct)
        source.put_file(path, "PAT-A/A-CT3/ct.nii.gz")
        run = Run.begin(platform.settings, "ingest", {})
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Catalog, "add_scan", _dies)
            ingest.ingest(platform.settings, run_id=run.run_id)
        source.delete("PAT-A/A-CT3/ct.nii.gz")
        left = set(platform.objects("A-CT3"))
        assert platform.catalog.current_scan("A-CT3") is None
        return left

    def test_a_later_withdrawal_removes_it(
        self, platform: Platform, phantom: Phantom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left, others = self.ingest(platform, phantom, monkeypatch), platform.objects("B-CT1")
        assert len(left) == 1
        platform.withdraw()
        assert platform.objects("A-CT") == {}
        assert left <= platform.noted()
        assert platform.objects("B-CT1") == others

    def test_the_sweep_removes_it_when_the_patient_withdrew_meanwhile(
        self, platform: Platform, phantom: Phantom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            late = platform.withdrawing_before(ingest._canonicalise)
            patch.setattr(ingest, "_canonicalise", late)
            left = self.ingest(platform, phantom, monkeypatch)
        assert len(left) == 1
        assert leftovers.sweep(platform.settings) == Swept(1, 1)
        assert platform.objects("A-CT") == {}
        assert left <= platform.noted()
        assert leftovers.sweep(platform.settings) == Swept()

    def test_nothing_is_stored_of_a_patient_who_withdrew_before(
        self, platform: Platform, phantom: Phantom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        late = platform.withdrawing_before(ingest._require_same_patient)
        entry = next(one for one in ingest.list_entries(platform.settings) if one.case_id == "A-CT1")
        nifti.write_source(platform.folder / "made.nii.gz", phantom.ct.with_array(phantom.ct.array + 1))
        source = open_store(platform.settings.source_uri, platform.settings)
        source.put_file(platform.folder / "made.nii.gz", entry.ct)
        monkeypatch.setattr(ingest, "_require_same_patient", late)
        monkeypatch.setattr(ingest, "_canonicalise", _dies)
        run = Run.begin(platform.settings, "ingest", {})
        outcome = ingest.ingest_case(platform.settings, run.run_id, entry)
        assert (outcome.outcome, outcome.reason) == (Outcome.QUARANTINED, "withdrawn")
        assert platform.scan("A-CT1").state is ScanState.WITHDRAWN

    def test_what_is_recorded_leaves_no_intake(
        self, platform: Platform, phantom: Phantom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert platform.catalog.intakes_of("PAT-A") == platform.catalog.intakes_of("PAT-B") == []
        self.ingest(platform, phantom, monkeypatch)
        assert [case for case, _ in platform.catalog.intakes_of("PAT-A")] == ["A-CT3"]

    def test_another_patients_live_ingest_under_the_case_id_loses_nothing(self, platform: Platform) -> None:
        """A-CT1 was listed as PAT-B's case while nothing of it was recorded."""
        key = f"scans/A-CT1/{'c' * 16}/vertebrae.nii.gz"
        platform.catalog.begin_intake("A-CT1", "PAT-B", "c" * 64)
        platform.workspace.store.put_bytes(b"not recorded yet", key)
        withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
        leftovers.sweep(platform.settings)
        assert set(platform.objects("A-CT")) == {key}


class TestFailures:
    """What goes wrong with one withdrawn patient stops no other, and is told."""

    def leave(self, platform: Platform) -> dict[str, str]:
        """Both patients have withdrawn, and of each something came since; its key by case."""
        keys = {case: f"crops/{case}/{'0' * 16}-{'0' * 16}/ct.nii.gz" for case in ("A-CT1", "A-CT2", "B-CT1")}
        for patient_id in ("PAT-A", "PAT-B"):
            withdraw.withdraw(platform.settings, patient_id, **WORDS)
        for key in keys.values():
            platform.workspace.store.put_bytes(b"late", key)
        return keys

    @pytest.mark.parametrize("error", [RefusedError("object lock until 2027"), OSError("input/output error")])
    def test_the_others_are_finished(
        self, platform: Platform, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys, store = self.leave(platform), type(platform.workspace.store)
        delete: Callable[..., None] = store.delete

        def kept(self: Any, key: str) -> None:
            if key == keys["A-CT1"]:
                raise error
            delete(self, key)

        with monkeypatch.context() as patch:
            patch.setattr(store, "delete", kept)
            found = leftovers.sweep(platform.settings)
            assert (found.patients, found.objects) == (1, 1)
            (failure,) = found.failures
            assert failure == f"withdrawal 1: {type(error).__name__}: {error}"
            assert f"not finished: {failure}" in found.remarks()
            with pytest.raises(RefusedError, match=str(error)):
                found.require_finished()
        assert keys["B-CT1"] not in platform.objects("")
        assert keys["A-CT1"] in platform.objects("")
        if isinstance(error, RefusedError):
            assert keys["A-CT2"] not in platform.objects("")
        assert leftovers.sweep(platform.settings).failures == ()
        assert platform.objects("-CT") == {}

    def test_the_command_ends_with_an_error(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys, store = self.leave(platform), type(platform.workspace.store)

        def kept(self: Any, key: str) -> None:
            raise RefusedError("object lock until 2027", file=key)

        monkeypatch.setattr(store, "delete", kept)
        monkeypatch.setattr("retroln.cli.review.Settings", lambda: platform.settings)
        ended = CliRunner().invoke(cli, ["reconcile"])
        assert isinstance(ended.exception, RefusedError)
        assert all(key in str(ended.exception) for key in (keys["A-CT1"], keys["B-CT1"]))
        assert "note: not finished: withdrawal 2" in ended.output

    def test_a_server_that_is_away_ends_the_pass(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.leave(platform)

        def away(*_: Any) -> None:
            raise UnavailableError("the store went away")

        monkeypatch.setattr(type(platform.workspace.store), "delete", away)
        with pytest.raises(UnavailableError, match="went away"):
            leftovers.sweep(platform.settings)


def test_of_many_withdrawals_each_comes_to_its_turn() -> None:
    many: list[Any] = [SimpleNamespace(patient_id=number) for number in range(47)]
    start = datetime(2026, 5, 3, 12, tzinfo=UTC)
    passes = [leftovers.in_turn(many, start + number * timedelta(minutes=5)) for number in range(3)]
    assert {len(one) for one in passes} == {leftovers.PATIENTS_PER_PASS}
    assert {item.patient_id for one in passes for item in one} == set(range(47))
    assert leftovers.in_turn(many[:20], start) == many[:20]
    assert leftovers.in_turn([], start) == []
