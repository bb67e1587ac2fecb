"""Ingest over cases that are unchanged: compared at once, outcomes as if each had been looked at alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.records import ScanDraft, ScanRecord
from retroln.errors import ConflictError, InputError, UnavailableError
from retroln.settings import Settings
from retroln.steps import arrivals, cases, ingest, outages
from retroln.steps.cases_table import CASES_FILE
from retroln.steps.identity import Policy
from retroln.steps.runs import Run
from retroln.steps.source import find
from retroln.steps.workspace import open_workspace
from retroln.storage.base import ObjectInfo
from retroln.storage.local import LocalStore
from tests.way import ingest_all

Deliver = Callable[..., Path]
KEY = "of these tests, thirty-two characters"


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the process pools that were started."""
    sizes: list[int] = []
    pool_of = cases._pool

    def counted(processes: int) -> ProcessPoolExecutor:
        sizes.append(processes)
        return pool_of(processes)

    monkeypatch.setattr(cases, "_pool", counted)
    return sizes


def known(settings: Settings, run_id: int | None = None) -> dict[str, CaseOutcome]:
    """What the comparison says, without a look at any case."""
    workspace, entries = open_workspace(settings), ingest.list_entries(settings)
    run_id = run_id or workspace.catalog.begin_run("ingest", {})
    return arrivals.unchanged(workspace, Policy.of(settings), run_id, entries)


def looked_at(settings: Settings) -> dict[str, CaseOutcome]:
    """What a look at each case alone says."""
    run_id = open_workspace(settings).catalog.begin_run("ingest", {})
    return {
        entry.case_id: ingest.ingest_case(settings, run_id, entry) for entry in ingest.list_entries(settings)
    }


def deliver_every_kind(settings: Settings, deliver: Deliver, folder: Path) -> None:
    """Cases that ingest takes in, and one for each way to hold one."""
    source = folder / "source"
    for name in ("GOOD", "WITHDRAWN-LATER", "NOT-CT"):
        deliver(name, f"P-{name}")
    (source / "P-NOT-CT" / "NOT-CT" / "ct.nii.gz").write_bytes(b"no image")
    (source / "P-EMPTY" / "MISSING").mkdir(parents=True)
    (source / "P-EMPTY" / "MISSING" / "mask.nii.gz").write_bytes(b"without a CT")
    (source / "P-BAD" / "two words").mkdir(parents=True)
    (source / "P-BAD" / "two words" / "ct.nii.gz").write_bytes(b"a name that is no id")
    (source / "loose.nii.gz").write_bytes(b"in no case folder")
    (source / "P-KEY" / "WAITS" / "dicom").mkdir(parents=True)
    (source / "P-KEY" / "WAITS" / "dicom" / "1.dcm").write_bytes(b"waits for a key")
    (source / "P-LINK" / "LINK").mkdir(parents=True)
    (source / "P-LINK" / "LINK" / "ct.nii.gz").symlink_to(folder / "elsewhere")
    (folder / "elsewhere").write_bytes(b"outside")


def withdraw(settings: Settings, patient_id: str) -> None:
    catalog = open_workspace(settings).catalog
    catalog.begin_withdrawal(patient_id, "asked", "Dr A")
    catalog.empty_withdrawn(patient_id)


def test_the_comparison_says_what_a_look_at_each_case_says(
    settings: Settings, deliver: Deliver, tmp_path: Path
) -> None:
    deliver_every_kind(settings, deliver, tmp_path)
    ingest_all(settings)
    withdraw(settings, "P-WITHDRAWN-LATER")
    alone = looked_at(settings)
    assert {case: (one.outcome, one.reason) for case, one in alone.items()} == {
        "GOOD": (Outcome.SKIPPED, None),
        "LINK": (Outcome.QUARANTINED, "unsafe_key"),
        "MISSING": (Outcome.QUARANTINED, "missing_object"),
        "NOT-CT": (Outcome.QUARANTINED, "truncated"),
        "WAITS": (Outcome.QUARANTINED, "no_pseudonym_key"),
        "WITHDRAWN-LATER": (Outcome.QUARANTINED, "withdrawn"),
        "misplaced:loose.nii.gz": (Outcome.QUARANTINED, "misplaced"),
        "two words": (Outcome.QUARANTINED, "bad_name"),
    }
    assert "the case has no CT" in str(alone["MISSING"].detail)
    assert "got: mask.nii.gz; fix: upload the CT under one of these names" in str(alone["MISSING"].detail)
    at_once = known(settings)
    # a link's listing does not say where it leads, so that one is looked at
    assert at_once == {case: one for case, one in alone.items() if case != "LINK"}
    assert ingest_all(settings) == alone


def test_a_new_delivery_of_a_withdrawn_patient_is_held_once_and_known_then(
    settings: Settings, deliver: Deliver
) -> None:
    deliver("FIRST", "P1")
    ingest_all(settings)
    withdraw(settings, "P1")
    deliver("SECOND", "P1")
    assert set(known(settings)) == {"FIRST"}
    for _ in range(2):
        assert {one.reason for one in ingest_all(settings).values()} == {"withdrawn"}
    assert set(known(settings)) == {"FIRST", "SECOND"}
    assert len(open_workspace(settings).catalog.case_history("SECOND").events) == 1


def test_what_is_new_changed_or_wanted_again_is_looked_at(settings: Settings, deliver: Deliver) -> None:
    for name in ("SAME", "CHANGED", "REQUEUED"):
        deliver(name, f"P-{name}")
    (deliver("REQUEUED", "P-REQUEUED") / "ct.nii.gz").write_bytes(b"no image")
    ingest_all(settings)
    deliver("NEW", "P-NEW")
    os.utime(deliver("CHANGED", "P-CHANGED") / "ct.nii.gz", ns=(1, 1))
    open_workspace(settings).catalog.requeue("REQUEUED")
    assert known(settings) == {"SAME": CaseOutcome("SAME", Outcome.SKIPPED)}
    outcomes = {case: one.outcome.value for case, one in ingest_all(settings).items()}
    assert outcomes == {"SAME": "skipped", "CHANGED": "skipped", "NEW": "done", "REQUEUED": "quarantined"}
    assert set(known(settings)) == {"SAME", "CHANGED", "NEW", "REQUEUED"}


def test_a_case_that_waits_for_a_key_is_looked_at_once_there_is_one(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "source" / "P" / "WAITS" / "dicom"
    folder.mkdir(parents=True)
    (folder / "1.dcm").write_bytes(b"no DICOM either")
    ingest_all(settings)
    assert set(known(settings)) == {"WAITS"}
    assert known(settings.model_copy(update={"pseudonym_key": SecretStr(KEY)})) == {}


def test_nothing_is_started_and_no_object_asked_for_when_nothing_changed(
    settings: Settings, deliver: Deliver, pools: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"processes": 2, "shard_size": 1})
    for number in range(4):
        deliver(f"C{number}", f"P{number}")
    assert {one.outcome for one in ingest_all(settings).values()} == {Outcome.DONE}
    assert pools == [2]
    asked: list[str] = []
    listing, stat = LocalStore.list, LocalStore.stat
    monkeypatch.setattr(LocalStore, "stat", lambda self, key: asked.append(key) or stat(self, key))
    monkeypatch.setattr(
        LocalStore, "list", lambda self, prefix="": asked.append(f"all of {prefix}") or listing(self, prefix)
    )
    assert {one.outcome for one in ingest_all(settings).values()} == {Outcome.SKIPPED}
    assert pools == [2]
    assert asked == ["all of ", "all of "]  # the cases, then what is behind them


def test_of_a_large_archive_no_more_is_listed_than_is_worth_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "source" / "archive"
    (archive / "of" / "others").mkdir(parents=True)
    for number in range(300):
        (archive / "of" / "others" / f"{number:03}.nii.gz").touch()
    (archive / "ours.nii.gz").write_bytes(b"ours")
    (archive / "away.nii.gz").write_bytes(b"found before the others")
    (tmp_path / "source" / CASES_FILE).write_text(
        "case_id,patient_id,ct\nA,P,archive/away.nii.gz\nB,P,archive/ours.nii.gz\nC,P,../C.nii.gz\n"
    )
    entries, store = ingest.list_entries(settings), open_workspace(settings).source
    listed, listing = [], LocalStore.list

    def counted(self: LocalStore, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in listing(self, prefix):
            listed.append((prefix, info.key))
            yield info

    monkeypatch.setattr(LocalStore, "list", counted)
    at_once = arrivals.Listed.of(store, entries)
    assert {prefix for prefix, _ in listed} == {"archive/"}
    assert len(listed) == 2 * arrivals._LISTED_PER_KEY
    assert set(at_once.infos) == {"archive/away.nii.gz"}
    assert at_once.stat("archive/ours.nii.gz") == store.stat("archive/ours.nii.gz")
    with pytest.raises(InputError, match="unsafe object key"):
        at_once.stat("../C.nii.gz")


def test_each_case_is_told_once_and_stands_in_the_ledger(settings: Settings, deliver: Deliver) -> None:
    (deliver("HELD", "P1") / "ct.nii.gz").write_bytes(b"no image")
    deliver("KNOWN", "P2")
    ingest_all(settings)
    deliver("NEW", "P3")
    run, seen = Run.begin(settings, "ingest", {}), []
    outcomes = ingest.ingest(settings, run_id=run.run_id, on_outcome=seen.append)
    assert outcomes == seen
    ledger = open_workspace(settings).catalog.outcomes_of(run.run_id)
    assert ledger == sorted(outcomes, key=lambda one: one.case_id)
    assert [one.outcome.value for one in ledger] == ["quarantined", "skipped", "done"]
    accounting, shown = run.settle_cases(["HELD", "KNOWN", "NEW"])
    assert (accounting, shown) == (Accounting(3, 1, 1, 1, 0), [ledger[0]])
    assert open_workspace(settings).catalog.claims() == []


def test_a_case_that_cannot_be_compared_is_looked_at_alone(
    settings: Settings, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A", "B"):
        deliver(name, f"P-{name}")
    ingest_all(settings)
    parts_of = arrivals.parts_of

    def breaks_once(entry: ingest.CaseEntry, source: arrivals.Listing) -> arrivals.Parts:
        if entry.case_id == "A" and isinstance(source, arrivals.Listed):
            raise RuntimeError("boom")
        return parts_of(entry, source)

    monkeypatch.setattr(arrivals, "parts_of", breaks_once)
    assert set(known(settings)) == {"B"}
    assert {one.outcome for one in ingest_all(settings).values()} == {Outcome.SKIPPED}


class TestNamesThatAreNoText:
    """The bytes of a file's or folder's name need not be UTF-8: held, while the others are taken in."""

    _NAMES = (
        b"P/bad\xff/ct.nii.gz",
        b"P\xff/PATIENT/ct.nii.gz",
        b"P/SLICES/dicom/image\xff.dcm",
        b"loose\xff/ct.nii.gz",
    )

    @pytest.fixture(autouse=True)
    def _delivered(self, tmp_path: Path, deliver: Deliver) -> None:
        deliver("GOOD")
        for name in self._NAMES:
            path = tmp_path / "source" / os.fsdecode(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")

    def test_they_are_held_under_names_that_can_be_written(self, settings: Settings) -> None:
        settings = settings.model_copy(update={"pseudonym_key": SecretStr(KEY)})
        for good in (Outcome.DONE, Outcome.SKIPPED):
            outcomes = ingest_all(settings)
            assert outcomes.pop("GOOD").outcome is good
            assert {name: outcome.reason for name, outcome in outcomes.items()} == {
                "bad\\udcff": "bad_name",
                "PATIENT": "bad_name",
                "SLICES": "unsafe_key",
                "misplaced:loose\\udcff/ct.nii.gz": "misplaced",
            }
            for outcome in outcomes.values():
                detail = str(outcome.detail)
                assert detail.isprintable()
                assert all(word in detail for word in ("udcff", "expected: ", "got: ", "fix: "))

    def test_so_they_are_where_names_are_replaced(self, settings: Settings) -> None:
        changes = {"identity": "pseudonym", "pseudonym_key": SecretStr(KEY)}
        settings = settings.model_copy(update=changes)
        outcomes = ingest_all(settings)
        held = {name: one for name, one in outcomes.items() if one.outcome is Outcome.QUARANTINED}
        assert len(outcomes) == len(held) + 1 == len(self._NAMES) + 1
        for name, outcome in held.items():
            assert all(word in str(outcome.detail) for word in ("S-", "expected: ", "fix: "))
            assert not any(word in str(outcome.detail) for word in ("udcff", "image", "PATIENT"))
            keys = find(settings, name.removeprefix("misplaced:"))
            assert any("\udcff" in key or key == "P/SLICES/dicom/" for key in keys)


class TestTryingAgain:
    """Accounting is the run's, however often ingest was called for it."""

    @pytest.mark.parametrize("processes", [1, 2])
    def test_a_run_that_was_interrupted_counts_all_that_it_did(
        self, settings: Settings, deliver: Deliver, processes: int
    ) -> None:
        settings = settings.model_copy(update={"processes": processes})
        for number in range(3):
            deliver(f"C{number}", f"P{number}")
        run, told = Run.begin(settings, "ingest", {}), []

        def interrupt(outcome: CaseOutcome) -> None:
            told.append(outcome)
            if len(told) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ingest.ingest(settings, run_id=run.run_id, on_outcome=interrupt)
        outcomes = ingest.ingest(settings, run_id=run.run_id)
        assert {one.outcome for one in outcomes} == {Outcome.DONE}
        assert run.settle_cases(f"C{number}" for number in range(3))[0] == Accounting(3, 3, 0, 0, 0)
        catalog = open_workspace(settings).catalog
        assert [one.outcome for one in catalog.outcomes_of(run.run_id)] == [Outcome.DONE] * 3
        assert {len(catalog.case_history(f"C{number}").scans) for number in range(3)} == {1}
        assert catalog.claims() == []

    def test_what_a_dead_worker_recorded_and_did_not_note_is_the_runs_own(
        self, settings: Settings, deliver: Deliver
    ) -> None:
        deliver("A", "P1")
        (deliver("B", "P2") / "ct.nii.gz").write_bytes(b"no image")
        run_id = open_workspace(settings).catalog.begin_run("ingest", {})
        for entry in ingest.list_entries(settings):
            ingest.ingest_case(settings, run_id, entry)
        own = {one.case_id: one.outcome for one in ingest.ingest(settings, run_id=run_id)}
        assert own == {"A": Outcome.DONE, "B": Outcome.QUARANTINED}
        assert ingest_all(settings)["A"].outcome is Outcome.SKIPPED  # for another run it is no news

    def test_a_record_whose_answer_was_lost_is_done_once(
        self, settings: Settings, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outages, "_FIRST_PAUSE_S", 0.001)
        deliver("A", "P1")
        add_scan, calls = Catalog.add_scan, []

        def answer_is_lost(self: Catalog, draft: ScanDraft, run_id: int | None, **how: int) -> ScanRecord:
            calls.append(draft)
            add_scan(self, draft, run_id, **how)
            raise UnavailableError("the line broke")

        monkeypatch.setattr(Catalog, "add_scan", answer_is_lost)
        assert ingest_all(settings) == {"A": CaseOutcome("A", Outcome.DONE)}
        assert len(calls) == len(open_workspace(settings).catalog.case_history("A").scans) == 1

    def test_a_catalog_that_is_away_is_waited_for(
        self, settings: Settings, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outages, "_FIRST_PAUSE_S", 0.001)
        deliver("A", "P1")
        ingest_all(settings)
        current_scans, calls = Catalog.current_scans, []

        def away_once(self: Catalog, case_ids: list[str]) -> dict[str, ScanRecord]:
            calls.append(case_ids)
            if len(calls) == 1:
                raise UnavailableError("the catalog does not answer")
            return current_scans(self, case_ids)

        monkeypatch.setattr(Catalog, "current_scans", away_once)
        assert ingest_all(settings)["A"].outcome is Outcome.SKIPPED
        assert len(calls) == 2


class TestRaces:
    def test_what_another_has_in_hand_is_skipped(self, settings: Settings, deliver: Deliver) -> None:
        deliver("A", "P1")
        catalog = open_workspace(settings).catalog
        assert catalog.claim_case("A", "a shell", 60.0)
        outcome = ingest_all(settings)["A"]
        assert outcome == CaseOutcome("A", Outcome.SKIPPED, "claimed", "another worker has it")
        assert [(one.scan_id, one.case_id, one.owner) for one in catalog.claims()] == [(None, "A", "a shell")]
        assert catalog.current_scan("A") is None
        catalog.release_case("A", "a shell")
        assert ingest_all(settings)["A"].outcome is Outcome.DONE

    @pytest.mark.parametrize("damaged", [False, True])
    def test_what_another_recorded_meanwhile_is_skipped_and_stays(
        self, settings: Settings, deliver: Deliver, damaged: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As it may be when a lease has run out: the other run records while this one is at it."""
        folder = deliver("A", "P1")
        if damaged:
            (folder / "ct.nii.gz").write_bytes(b"no image")
        catalog, add_scan = open_workspace(settings).catalog, Catalog.add_scan
        other = catalog.begin_run("ingest", {})

        def late(self: Catalog, draft: ScanDraft, run_id: int | None, **how: int) -> ScanRecord:
            monkeypatch.setattr(Catalog, "add_scan", add_scan)
            self.add_scan(draft, other)
            return self.add_scan(draft, run_id, **how)

        monkeypatch.setattr(Catalog, "add_scan", late)
        outcome = ingest_all(settings)["A"]
        assert (outcome.outcome, outcome.reason) == (Outcome.SKIPPED, "done_elsewhere")
        assert [event.run_id for event in catalog.case_history("A").events] == [other]

    def test_a_draft_that_was_decided_on_another_scan_is_refused(
        self, settings: Settings, deliver: Deliver
    ) -> None:
        deliver("A", "P1")
        ingest_all(settings)
        catalog = open_workspace(settings).catalog
        scan = catalog.current_scan("A")
        assert scan is not None
        draft = ScanDraft(case_id="A", patient_id="P1", source_uri={}, source_fingerprint="f", ct_key="k")
        for follows in (0, scan.scan_id + 1):
            with pytest.raises(ConflictError, match="another run added case A meanwhile"):
                catalog.add_scan(draft, None, follows=follows)
        assert catalog.current_scan("A") == scan
        assert catalog.add_scan(draft, None, follows=scan.scan_id).revision == 2
        with pytest.raises(ConflictError, match=f"scan {scan.scan_id} to be"):
            catalog.add_scan(replace(draft, case_id="B"), None, follows=scan.scan_id)


def test_fingerprints_stay_what_they_were(settings: Settings, tmp_path: Path) -> None:
    """Catalogs hold them: a case that was known before stays known."""
    source = tmp_path / "source"
    (source / "slices" / "deep").mkdir(parents=True)
    for name in ("slices/2", "slices/10", "slices/deep/1", "labels.nii.gz"):
        (source / name).write_bytes(name.encode())
        os.utime(source / name, ns=(10**18, 10**18))
    (source / CASES_FILE).write_text(
        "case_id,patient_id,ct,vertebrae,label_ids,series\nC,P,slices/,labels.nii.gz,verse,3\n"
    )
    (entry,) = ingest.list_entries(settings)
    store = open_workspace(settings).source
    for listing in (store, arrivals.Listed.of(store, [entry])):
        arrival = arrivals.Arrival.of(entry, arrivals.Known({}, {}, ()), listing, Policy.of(settings))
        assert arrival.fingerprint == "32cf4d9bffc33ab87d95475d7f25ab8fb9bb396f41ea42b2fb88d6d218dd1fe2"
