"""Several workers, in several processes, on one backlog: each scan is done by one, and none is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import select

from retroln.catalog import claims
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.models import Claim, utc_now
from retroln.catalog.records import ScanDraft, ScanRecord
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError, LeaseError, NotFoundError, UnavailableError
from retroln.settings import Settings
from retroln.steps import claimed, leases, outages, prepare
from retroln.steps.claimed import Job, run_claimed
from retroln.steps.workspace import open_workspace

FOREVER_S = 3600.0


def add(catalog: Catalog, case_id: str = "c1") -> int:
    draft = ScanDraft(case_id=case_id, patient_id="p", source_uri={}, source_fingerprint="f", ct_key="k")
    return catalog.add_scan(draft, None).scan_id


def age(catalog: Catalog, seconds: float) -> None:
    """Let time pass for every claim."""
    with catalog.database.writing() as session:
        for claim in session.scalars(select(Claim)):
            claim.expires_at -= timedelta(seconds=seconds)


@pytest.fixture
def shared(settings: Settings, catalog_url: str) -> Iterator[Settings]:
    """Settings of a platform on either database, without patience."""
    chosen = settings.model_copy(update={"catalog_url": catalog_url, "patience_s": 0.0})
    yield chosen
    open_workspace(chosen).catalog.close()


class TestClaims:
    def test_a_scan_is_in_one_hand(self, catalog: Catalog):
        scan_id, before = add(catalog), utc_now()
        assert catalog.claim(scan_id, "a", FOREVER_S)
        assert not catalog.claim(scan_id, "b", FOREVER_S)
        (found,) = catalog.claims()
        assert (found.scan_id, found.case_id, found.owner) == (scan_id, "c1", "a")
        left = found.expires_at - before
        assert timedelta(seconds=FOREVER_S - 5) < left < timedelta(seconds=FOREVER_S + 5)

    def test_only_the_owner_gives_it_back(self, catalog: Catalog):
        scan_id = add(catalog)
        catalog.claim(scan_id, "a", FOREVER_S)
        catalog.release(scan_id, "b")
        assert not catalog.claim(scan_id, "b", FOREVER_S)
        catalog.release(scan_id, "a")
        catalog.release(scan_id, "a")
        assert catalog.claims() == []
        assert catalog.claim(scan_id, "b", FOREVER_S)

    def test_an_owner_renews_its_own(self, catalog: Catalog):
        scan_id = add(catalog)
        assert catalog.claim(scan_id, "a", 10.0)
        (first,) = catalog.claims()
        assert catalog.claim(scan_id, "a", FOREVER_S)
        (renewed,) = catalog.claims()
        assert renewed.expires_at - first.expires_at > timedelta(seconds=FOREVER_S - 15)

    def test_renewing_needs_the_claim_and_takes_none(self, catalog: Catalog):
        scan_id = add(catalog)
        assert not catalog.renew(scan_id, "a", FOREVER_S)
        assert catalog.claims() == []
        catalog.claim(scan_id, "a", FOREVER_S)
        age(catalog, 2 * FOREVER_S)
        assert catalog.renew(scan_id, "a", FOREVER_S)
        assert not catalog.claim(scan_id, "b", FOREVER_S)
        age(catalog, 2 * FOREVER_S)
        assert catalog.claim(scan_id, "b", FOREVER_S)
        assert not catalog.renew(scan_id, "a", 2 * FOREVER_S)
        (kept,) = catalog.claims()
        assert kept.owner == "b"
        catalog.release(scan_id, "b")
        assert not catalog.renew(scan_id, "a", FOREVER_S)
        assert catalog.claims() == []

    def test_what_a_worker_records_needs_its_claim(self, catalog: Catalog):
        scan_id, mine = add(catalog), catalog.of_worker("a")
        for hand in (None, "b"):
            if hand:
                catalog.claim(scan_id, hand, FOREVER_S)
            for record in (mine.quarantine, mine.fail):
                with pytest.raises(LeaseError, match="no longer in the hands of a,"):
                    record(scan_id, "reason", "detail", None)
        assert catalog.scan(scan_id).state is ScanState.INGESTED
        catalog.release(scan_id, "b")
        catalog.claim(scan_id, "a", FOREVER_S)
        age(catalog, 2 * FOREVER_S)  # run out, and nobody took it
        mine.quarantine(scan_id, "reason", "detail", None)
        assert catalog.scan(scan_id).state is ScanState.QUARANTINED

    def test_a_lease_that_has_run_out_is_taken_over_and_a_live_one_is_not(self, catalog: Catalog):
        silent, alive = add(catalog, "silent"), add(catalog, "alive")
        catalog.claim(silent, "a", 0.05)
        catalog.claim(alive, "a", FOREVER_S)
        time.sleep(0.1)
        assert catalog.claim(silent, "b", FOREVER_S)
        assert not catalog.claim(alive, "b", FOREVER_S)
        catalog.release(silent, "a")
        assert [(claim.case_id, claim.owner) for claim in catalog.claims()] == [
            ("silent", "b"),
            ("alive", "a"),
        ]

    @pytest.mark.parametrize("lapsed", [False, True])
    def test_of_many_who_ask_at_once_one_gets_it(self, catalog: Catalog, lapsed: bool):
        for number in range(10):
            scan_id = add(catalog, f"c{number}")
            if lapsed:
                catalog.claim(scan_id, "dead", 0.0)
            with ThreadPoolExecutor(8) as pool:
                answers = pool.map(lambda name: catalog.claim(scan_id, name, FOREVER_S), "abcdefgh")  # noqa: B023
                assert sorted(answers) == [False] * 7 + [True]

    def test_all_that_a_dead_worker_has_is_given_back(self, catalog: Catalog):
        ids = [add(catalog, f"c{number}") for number in range(3)]
        for scan_id, owner in zip(ids, "aab", strict=True):
            catalog.claim(scan_id, owner, FOREVER_S)
        assert (catalog.release_all("a"), catalog.release_all("a")) == (2, 0)
        assert [claim.scan_id for claim in catalog.claims()] == ids[2:]

    def test_a_case_that_has_no_scan_yet_is_in_one_hand(self, catalog: Catalog):
        assert catalog.claim_case("new", "a", FOREVER_S)
        assert not catalog.claim_case("new", "b", FOREVER_S)
        assert catalog.claim_case("new", "a", FOREVER_S)
        catalog.release_case("new", "b")
        assert [(one.scan_id, one.case_id, one.owner) for one in catalog.claims()] == [(None, "new", "a")]
        catalog.release_case("new", "a")
        assert catalog.claim_case("new", "b", 0.0)
        assert catalog.claim_case("new", "c", FOREVER_S)

    def test_claims_on_cases_and_on_scans_are_freed_together_and_do_not_meet(self, catalog: Catalog):
        scan_id = add(catalog)
        assert catalog.claim(scan_id, "a", FOREVER_S)
        assert catalog.claim_case("c1", "b", FOREVER_S)
        assert catalog.claim_case("c2", "a", FOREVER_S)
        assert [(one.scan_id, one.case_id) for one in catalog.claims()] == [
            (scan_id, "c1"),
            (None, "c1"),
            (None, "c2"),
        ]
        assert catalog.release_all("a") == 2
        assert [one.owner for one in catalog.claims()] == ["b"]

    def test_an_unknown_scan_cannot_be_claimed(self, catalog: Catalog):
        with pytest.raises(ConflictError, match=r"(?i)foreign key"):
            catalog.claim(42, "a", FOREVER_S)

    @pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
    def test_a_machine_whose_clock_is_wrong_takes_nothing(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ):
        scan_id = add(catalog)
        catalog.claim(scan_id, "a", FOREVER_S)
        monkeypatch.setattr(claims, "utc_now", lambda: utc_now() + timedelta(days=1))
        assert not catalog.claim(scan_id, "b", FOREVER_S)


class TestLedger:
    def test_the_last_word_on_a_case_counts(self, catalog: Catalog):
        run_id, other = catalog.begin_run("prepare", {}), catalog.begin_run("prepare", {})
        catalog.note_outcome(run_id, CaseOutcome("b", Outcome.FAILED, "OSError", "disk\x00 full"))
        catalog.note_outcome(run_id, CaseOutcome("a", Outcome.QUARANTINED, "l2_unresolved", "look"))
        catalog.note_outcome(other, CaseOutcome("b", Outcome.SKIPPED))
        assert catalog.outcomes_of(run_id) == [
            CaseOutcome("a", Outcome.QUARANTINED, "l2_unresolved", "look"),
            CaseOutcome("b", Outcome.FAILED, "OSError", "disk full"),
        ]
        for _ in range(2):
            catalog.note_outcome(run_id, CaseOutcome("b", Outcome.DONE))
        assert catalog.outcomes_of(run_id, Outcome.DONE, Outcome.FAILED) == [CaseOutcome("b", Outcome.DONE)]
        counts = {Outcome.DONE: 1, Outcome.SKIPPED: 0, Outcome.QUARANTINED: 1, Outcome.FAILED: 0}
        assert catalog.count_outcomes(run_id) == counts

    def test_what_says_less_leaves_what_is_noted(self, catalog: Catalog):
        run_id = catalog.begin_run("prepare", {})
        catalog.note_outcome(run_id, CaseOutcome("a", Outcome.DONE))
        both = CaseOutcome("a", Outcome.SKIPPED), CaseOutcome("b", Outcome.SKIPPED)
        catalog.note_outcome(run_id, *both, replacing=False)
        assert [one.outcome for one in catalog.outcomes_of(run_id)] == [Outcome.DONE, Outcome.SKIPPED]

    def test_a_run_that_is_unknown_has_no_ledger(self, catalog: Catalog):
        with pytest.raises(ConflictError):
            catalog.note_outcome(42, CaseOutcome("a", Outcome.DONE))

    def test_unfinished_runs_come_oldest_first(self, catalog: Catalog):
        first, ended, last = (catalog.begin_run("infer", {}) for _ in range(3))
        catalog.finish_run(ended, None, "failed")
        assert [run.run_id for run in catalog.unfinished_runs()] == [first, last]


class TestReleasingFailedScans:
    def test_each_goes_back_to_the_step_that_failed(self, catalog: Catalog):
        ids = [add(catalog, f"c{number}") for number in range(3)]
        for scan_id in ids[:2]:
            catalog.fail(scan_id, "OSError", "disk full", None)
        assert (catalog.requeue_failed(), catalog.requeue_failed()) == (2, 0)
        assert catalog.scans_to_prepare() == ids
        assert (catalog.scan(ids[0]).reason, len(catalog.case_history("c0").events)) == (None, 3)


def _quarantine(settings: Settings, owner: str, scan: ScanRecord) -> CaseOutcome:
    """Work that leaves an event of its own each time that it is done, and takes a while."""
    time.sleep(0.01)
    open_workspace(settings).catalog.quarantine(scan.scan_id, "looked_at", owner, None)
    return CaseOutcome(scan.case_id, Outcome.DONE)


def _ingested(scan: ScanRecord) -> bool:
    return scan.state is ScanState.INGESTED


def job_of(settings: Settings, run_id: int = 0, owner: str = "me", work: object = None) -> Job:
    run_id = run_id or open_workspace(settings).catalog.begin_run("prepare", {})
    return Job(settings, run_id, owner, work or partial(_quarantine, settings, owner), _ingested)  # type: ignore[arg-type]


def _worker(settings: Settings, owner: str, run_id: int, ids: list[int], start: Barrier) -> None:
    job = job_of(settings, run_id, owner)
    assert job.catalog.claims() == []
    start.wait()
    run_claimed(job, ids)


def test_processes_that_race_over_one_backlog_do_each_scan_once(shared: Settings):
    catalog, context = open_workspace(shared).catalog, multiprocessing.get_context("spawn")
    ids = [add(catalog, f"c{number:02}") for number in range(40)]
    runs, start = [catalog.begin_run("prepare", {}) for _ in range(3)], context.Barrier(3)
    workers = [
        context.Process(target=_worker, args=(shared, f"worker-{run}", run, ids, start)) for run in runs
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    done = [one.case_id for run in runs for one in catalog.outcomes_of(run, Outcome.DONE)]
    assert sorted(done) == [f"c{number:02}" for number in range(40)]
    told = Counter(event.to_state for case in set(done) for event in catalog.case_history(case).events)
    assert told == {"ingested": 40, "quarantined": 40}
    skipped = [one for run in runs for one in catalog.outcomes_of(run, Outcome.SKIPPED)]
    assert len(skipped) == 80
    assert {one.reason for one in skipped} <= {claimed.CLAIMED, claimed.DONE_ELSEWHERE}
    assert sum(catalog.count_outcomes(run)[Outcome.DONE] > 0 for run in runs) > 1  # it was a race
    assert catalog.claims() == []


class TestDoingUnderAClaim:
    def test_what_a_dead_worker_of_the_run_recorded_counts_as_the_runs_own(self, shared: Settings):
        """It died after recording the case and before noting it."""
        job, other = job_of(shared), job_of(shared)
        scan_id = add(job.catalog)
        job.catalog.quarantine(scan_id, "looked_at", "by the dead", job.run_id)
        (own,) = run_claimed(job, [scan_id])
        assert own == CaseOutcome("c1", Outcome.QUARANTINED, "looked_at", "by the dead")
        assert job.catalog.outcomes_of(job.run_id) == [own]
        assert job.catalog.quarantined_by(job.run_id) == {"looked_at": 1}
        (others,) = run_claimed(other, [scan_id])
        assert (others.outcome, others.reason) == (Outcome.SKIPPED, claimed.DONE_ELSEWHERE)
        assert job.catalog.quarantined_by(other.run_id) == {}

    def test_what_another_has_is_not_touched(self, shared: Settings):
        job = job_of(shared)
        scan_id = add(job.catalog)
        job.catalog.claim(scan_id, "other", FOREVER_S)
        (outcome,) = run_claimed(job, [scan_id])
        assert outcome == CaseOutcome("c1", Outcome.SKIPPED, "claimed", "another worker has it")
        assert job.catalog.outcomes_of(job.run_id) == [outcome]
        assert job.catalog.scan(scan_id).state is ScanState.INGESTED
        assert [claim.owner for claim in job.catalog.claims()] == ["other"]

    def test_what_another_has_done_is_not_done_again(self, shared: Settings):
        job = job_of(shared)
        scan_id = add(job.catalog)
        job.catalog.quarantine(scan_id, "looked_at", "by another", None)
        (outcome,) = run_claimed(job, [scan_id])
        assert (outcome.outcome, outcome.reason) == (Outcome.SKIPPED, "done_elsewhere")
        assert len(job.catalog.case_history("c1").events) == 2

    def test_a_scan_that_a_new_revision_replaced_meanwhile_is_skipped(self, shared: Settings):
        def overtaken(scan: ScanRecord) -> CaseOutcome:
            new = ScanDraft(case_id="c1", patient_id="p", source_uri={}, source_fingerprint="new", ct_key="k")
            job.catalog.add_scan(new, None)
            job.catalog.quarantine(scan.scan_id, "looked_at", "too late", job.run_id)
            raise AssertionError

        job = job_of(shared, work=overtaken)
        (outcome,) = run_claimed(job, [add(job.catalog)])
        detail = "it was done meanwhile and is superseded now"
        assert outcome == CaseOutcome("c1", Outcome.SKIPPED, "done_elsewhere", detail)
        assert job.catalog.outcomes_of(job.run_id) == [outcome]

    def test_a_conflict_over_a_scan_that_still_waits_is_a_failure(self, shared: Settings):
        def refused(scan: ScanRecord) -> CaseOutcome:
            raise ConflictError("the catalog refused")

        job = job_of(shared, work=refused)
        (outcome,) = run_claimed(job, [add(job.catalog)])
        assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, "ConflictError")

    def test_a_shard_that_is_started_again_keeps_what_it_did(self, shared: Settings):
        job = job_of(shared)
        scan_id = add(job.catalog)
        for _ in range(2):
            run_claimed(job, [scan_id])
        assert job.catalog.outcomes_of(job.run_id) == [CaseOutcome("c1", Outcome.DONE)]

    def test_an_error_is_noted_and_the_scan_given_back(self, shared: Settings):
        def broken(scan: ScanRecord) -> CaseOutcome:
            assert [claim.owner for claim in job.catalog.claims()] == ["me"]
            raise RuntimeError("boom")

        job = job_of(shared, work=broken)
        (outcome,) = run_claimed(job, [add(job.catalog)])
        assert outcome == CaseOutcome("c1", Outcome.FAILED, "RuntimeError", "boom")
        assert job.catalog.outcomes_of(job.run_id) == [outcome]
        assert job.catalog.claims() == []

    def test_an_interruption_gives_the_scan_back(self, shared: Settings):
        def interrupted(scan: ScanRecord) -> CaseOutcome:
            raise KeyboardInterrupt

        job = job_of(shared, work=interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_claimed(job, [add(job.catalog)])
        assert job.catalog.claims() == []

    def test_an_unknown_scan_is_refused_before_anything_is_done(self, shared: Settings):
        job = job_of(shared)
        with pytest.raises(NotFoundError, match="no scan 42"):
            run_claimed(job, [add(job.catalog), 42])
        assert job.catalog.outcomes_of(job.run_id) == []


@dataclass
class Renewals:
    """The catalog's `renew`, which tells when it was called and can be away."""

    renew: Callable[[int, str, float], bool]
    told: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    away: int = 0

    def __call__(self, scan_id: int, owner: str, lease_s: float) -> bool:
        try:
            if self.away:
                self.away -= 1
                raise UnavailableError("the catalog does not answer")
            return self.renew(scan_id, owner, lease_s)
        finally:
            self.told.release()

    def wait(self) -> None:
        """Wait for one that begins from now on to be over."""
        while self.told.acquire(blocking=False):
            pass
        for _ in range(2):  # the first may have begun before
            assert self.told.acquire(timeout=60)


def _renewing() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "lease"]


class TestKeepingAClaim:
    """Leases are long and renewed often; time passes by `age`."""

    @pytest.fixture
    def lasting(self, shared: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
        monkeypatch.setattr(leases, "_RENEWALS_PER_LEASE", 360_000)
        return shared.model_copy(update={"lease_s": FOREVER_S})

    @staticmethod
    def renewals(job: Job, monkeypatch: pytest.MonkeyPatch, away: int = 0) -> Renewals:
        made = Renewals(job.catalog.renew, away=away)
        monkeypatch.setattr(job.catalog, "renew", made)
        return made

    @pytest.mark.parametrize("away", [0, 3])
    def test_work_that_outlasts_its_lease_keeps_the_scan(
        self, lasting: Settings, away: int, monkeypatch: pytest.MonkeyPatch
    ):
        def long(scan: ScanRecord) -> CaseOutcome:
            for _ in range(away):
                renewals.wait()
            for _ in range(3):
                age(job.catalog, 0.9 * FOREVER_S)
                renewals.wait()
            assert not job.catalog.claim(scan.scan_id, "other", FOREVER_S)
            return _quarantine(lasting, "me", scan)

        job = job_of(lasting, work=long)
        renewals = self.renewals(job, monkeypatch, away)
        (outcome,) = run_claimed(job, [add(job.catalog)])
        assert outcome == CaseOutcome("c1", Outcome.DONE)
        assert (job.catalog.claims(), _renewing()) == ([], [])

    @pytest.mark.parametrize("end", ["records", "breaks"])
    @pytest.mark.parametrize("taken", [True, False])
    def test_a_worker_that_lost_its_claim_records_nothing(
        self, lasting: Settings, taken: bool, end: str, monkeypatch: pytest.MonkeyPatch
    ):
        """Another took it, or it was given back in the worker's name and nobody has it."""

        def slow(scan: ScanRecord) -> CaseOutcome:
            age(job.catalog, 2 * FOREVER_S)
            if taken:
                while not job.catalog.claim(scan.scan_id, "other", FOREVER_S):
                    age(job.catalog, 2 * FOREVER_S)  # it had just been renewed
            else:
                job.catalog.release_all("me")
            if end == "breaks":
                raise RuntimeError("no CT is there")
            job.catalog.of_worker("me").quarantine(scan.scan_id, "looked_at", "by the loser", None)
            raise AssertionError

        job = job_of(lasting, work=slow)
        scan_id = add(job.catalog)
        (outcome,) = run_claimed(job, [scan_id])
        assert (outcome.outcome, outcome.reason) == (Outcome.SKIPPED, claimed.LEASE_LOST)
        assert job.catalog.outcomes_of(job.run_id) == [outcome]
        assert [event.to_state for event in job.catalog.case_history("c1").events] == ["ingested"]
        assert [claim.owner for claim in job.catalog.claims()] == (["other"] if taken else [])
        assert _renewing() == []

    def test_a_loser_leaves_what_the_winner_of_the_same_run_noted(self, lasting: Settings):
        def slow(scan: ScanRecord) -> CaseOutcome:
            job.catalog.release_all("me")
            (won,) = run_claimed(job_of(lasting, job.run_id, "other"), [scan.scan_id])
            assert won.outcome is Outcome.DONE
            raise RuntimeError("boom")

        job = job_of(lasting, work=slow)
        (outcome,) = run_claimed(job, [add(job.catalog)])
        assert outcome.outcome is Outcome.SKIPPED
        assert job.catalog.outcomes_of(job.run_id) == [CaseOutcome("c1", Outcome.DONE)]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_nothing_is_renewed_after_the_work(self, lasting: Settings, error: type[BaseException]):
        def broken(scan: ScanRecord) -> CaseOutcome:
            assert _renewing() == ["lease"]
            raise error

        job = job_of(lasting, work=broken)
        with suppress(KeyboardInterrupt):
            run_claimed(job, [add(job.catalog)])
        assert (job.catalog.claims(), _renewing()) == ([], [])

    def test_work_that_hangs_is_not_renewed_for_ever(self):
        calls: list[int] = []
        with leases.renewed(lambda: not calls.append(1), lease_s=0.03, at_most_s=0.05):
            (thread,) = (one for one in threading.enumerate() if one.name == "lease")
            thread.join(60)
        assert len(calls) == 5

    def test_claims_are_renewed_in_worker_processes(self, shared: Settings):
        chosen = shared.model_copy(update={"lease_s": 0.3})
        job = job_of(chosen, work=partial(_until_renewed, chosen))
        ids = [add(job.catalog, name) for name in ("a", "b")]
        assert {one.outcome for one in run_claimed(job, ids, processes=2)} == {Outcome.DONE}


def _until_renewed(settings: Settings, scan: ScanRecord) -> CaseOutcome:
    def ends() -> list[datetime]:
        claims = open_workspace(settings).catalog.claims()
        return [claim.expires_at for claim in claims if claim.scan_id == scan.scan_id]

    first, never = ends(), threading.Event()
    while ends() == first:
        never.wait(0.02)
    return CaseOutcome(scan.case_id, Outcome.DONE)


def _die(folder: Path, scan: ScanRecord) -> CaseOutcome:
    if scan.case_id == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / scan.case_id).touch()
    return CaseOutcome(scan.case_id, Outcome.DONE)


def test_the_case_of_a_process_that_died_is_noted_and_given_back(shared: Settings, tmp_path: Path):
    job = job_of(shared, work=partial(_die, tmp_path))
    ids = [add(job.catalog, name) for name in ("a", "dies", "b")]
    seen: list[CaseOutcome] = []
    outcomes = run_claimed(job, ids, processes=2, on_outcome=seen.append)
    assert outcomes == seen
    noted = {one.case_id: (one.outcome.value, one.reason) for one in job.catalog.outcomes_of(job.run_id)}
    assert noted == {"a": ("done", None), "b": ("done", None), "dies": ("failed", "process_died")}
    assert (tmp_path / "a").exists()
    assert job.catalog.claims() == []


@dataclass
class Away:
    """Stands in for a catalog's method, or a piece of work, whose server is away for some calls."""

    times: int
    instead_of: object
    calls: int = 0

    def __call__(self, *arguments: object, **named: object) -> object:
        self.calls += 1
        if self.calls <= self.times:
            raise UnavailableError("the server does not answer")
        return self.instead_of(*arguments, **named)  # type: ignore[operator]


class TestServersThatAreAway:
    @pytest.fixture
    def patient(self, shared: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
        monkeypatch.setattr(outages, "_FIRST_PAUSE_S", 0.001)
        chosen = shared.model_copy(update={"patience_s": 30.0})
        yield chosen
        open_workspace(chosen).catalog.close()

    def test_a_case_that_is_waited_for_is_done_once(self, patient: Settings):
        work = Away(2, partial(_quarantine, patient, "me"))
        job = job_of(patient, work=work)
        (outcome,) = run_claimed(job, [add(job.catalog)])
        assert (outcome, work.calls) == (CaseOutcome("c1", Outcome.DONE), 3)
        assert [event.to_state for event in job.catalog.case_history("c1").events] == [
            "ingested",
            "quarantined",
        ]
        assert job.catalog.outcomes_of(job.run_id) == [outcome]

    @pytest.mark.parametrize("method", ["case_ids", "claim", "scan", "note_outcome"])
    def test_the_catalog_is_waited_for(self, patient: Settings, method: str, monkeypatch: pytest.MonkeyPatch):
        job = job_of(patient)
        scan_id, away = add(job.catalog), Away(2, getattr(job.catalog, method))
        monkeypatch.setattr(job.catalog, method, away, raising=True)
        (outcome,) = run_claimed(job, [scan_id])
        assert (outcome, away.calls) == (CaseOutcome("c1", Outcome.DONE), 3)
        assert job.catalog.outcomes_of(job.run_id) == [outcome]

    def test_when_patience_ends_the_case_failed(self, shared: Settings):
        job = job_of(shared, work=Away(1, None))
        (outcome,) = run_claimed(job, [add(job.catalog)])
        assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, "UnavailableError")
        assert job.catalog.outcomes_of(job.run_id) == [outcome]

    def test_a_scan_is_not_blamed_for_a_store_that_is_away(
        self, shared: Settings, monkeypatch: pytest.MonkeyPatch
    ):
        catalog = open_workspace(shared).catalog
        scan_id, run_id = add(catalog), catalog.begin_run("prepare", {})
        monkeypatch.setattr(prepare, "_prepare", Away(1, None))
        (outcome,) = prepare.prepare(shared, [scan_id], run_id=run_id, owner="me")
        assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, "UnavailableError")
        assert [event.to_state for event in catalog.case_history("c1").events] == ["ingested"]

    def test_without_a_catalog_the_pass_ends_and_the_rest_waits(
        self, shared: Settings, monkeypatch: pytest.MonkeyPatch
    ):
        job = job_of(shared)
        ids = [add(job.catalog, name) for name in "abc"]
        claim, note = Away(1000, None), job.catalog.note_outcome
        with monkeypatch.context() as away:
            away.setattr(job.catalog, "claim", claim)
            away.setattr(job.catalog, "note_outcome", Away(1000, note))
            with pytest.raises(UnavailableError):
                run_claimed(job, ids)
        assert claim.calls == 1
        assert job.catalog.scans_to_prepare() == ids

    def test_a_case_whose_line_is_lost_keeps_what_was_done(
        self, shared: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        job = job_of(shared)
        scan_id = add(job.catalog)
        monkeypatch.setattr(job.catalog, "note_outcome", Away(1000, None))
        assert run_claimed(job, [scan_id]) == [CaseOutcome("c1", Outcome.DONE)]
        assert "c1 was done, which could not be noted" in caplog.text
        assert job.catalog.claims() == []
