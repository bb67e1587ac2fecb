"""A run's sum is counted from what its workers noted; the untouched cost a count, however many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import event, text

from retroln.catalog.accounting import Accounting, AccountingError, CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.records import (
    CropDraft,
    DatasetDraft,
    DatasetRecord,
    LandmarksDraft,
    MemberDraft,
    RoiDraft,
    ScanDraft,
    ScanRecord,
)
from retroln.catalog.states import ScanState
from retroln.settings import Settings
from retroln.steps import infer, prepare
from retroln.steps.infer import Model
from retroln.steps.runs import Backlog, Run
from retroln.steps.workspace import open_workspace

DONE, SKIPPED, QUARANTINED, FAILED = Outcome.DONE, Outcome.SKIPPED, Outcome.QUARANTINED, Outcome.FAILED


@pytest.fixture
def shared(settings: Settings, catalog_url: str) -> Iterator[Settings]:
    """Settings of a platform on either database, without patience."""
    chosen = settings.model_copy(update={"catalog_url": catalog_url, "patience_s": 0.0})
    yield chosen
    open_workspace(chosen).catalog.close()


def add(catalog: Catalog, case_id: str) -> ScanRecord:
    draft = ScanDraft(case_id=case_id, patient_id="p", source_uri={}, source_fingerprint="f", ct_key="k")
    return catalog.add_scan(draft, None)


def prepared(catalog: Catalog, case_id: str) -> ScanRecord:
    scan = add(catalog, case_id)
    record_prepared(catalog, scan)
    return catalog.scan(scan.scan_id)


def record_prepared(catalog: Catalog, scan: ScanRecord) -> None:
    catalog.record_prepared(
        scan.scan_id,
        LandmarksDraft(
            source="s", label_ids="verse", rung="l2", anchored=True, truncated=[], findings=[], levels={}
        ),
        RoiDraft(start=(0, 0, 0), stop=(1, 1, 1), clamped_sides=[], document={}),
        CropDraft(ct_key="k", ct_sha256="s", roi_key="r"),
        None,
    )


def seen(catalog: Catalog, scan: ScanRecord, version: int) -> None:
    catalog.record_prediction(
        scan.scan_id, model_name="m", version=version, label_key="k", page_key=None, nodes=[], run_id=None
    )


def dataset_of(catalog: Catalog, *trained: ScanRecord) -> DatasetRecord:
    members = tuple(
        MemberDraft(scan_id=scan.scan_id, patient_id="p", case_id=scan.case_id, role="train")
        for scan in trained
    )
    return catalog.add_dataset(DatasetDraft(version="v", manifest_key="k", members=members))


def model_of(settings: Settings, dataset: DatasetRecord) -> Model:
    return Model("m", 7, dataset, settings.work_dir)


def begin(settings: Settings, external_id: str | None = None) -> Run:
    return Run.begin(settings, "prepare", {}, external_id)


def note(run: Run, **outcomes: Outcome) -> None:
    """What workers would have noted of cases."""
    catalog = open_workspace(run.settings).catalog
    for case_id, outcome in outcomes.items():
        why = ("why", "at length") if outcome in (QUARANTINED, FAILED) else (None, None)
        catalog.note_outcome(run.run_id, CaseOutcome(case_id, outcome, *why))


class TestBacklogs:
    def test_what_preparation_has_left_and_answers_for(self, shared: Settings):
        catalog = open_workspace(shared).catalog
        waits, failed, held = (add(catalog, name) for name in ("waits", "failed", "held"))
        prepared(catalog, "prepared")
        catalog.fail(failed.scan_id, "OSError", "disk full", None)
        catalog.quarantine(held.scan_id, "l2_unresolved", "look", None)
        # held at ingest, for which preparation does not answer
        catalog.add_scan(
            ScanDraft(
                case_id="never-in",
                patient_id="p",
                source_uri={},
                source_fingerprint="f",
                state=ScanState.QUARANTINED,
                reason="truncated",
            ),
            None,
        )
        assert prepare.backlog(shared) == Backlog(
            left=(waits.scan_id, failed.scan_id),
            skipped=1,
            held=(CaseOutcome("held", QUARANTINED, "l2_unresolved", "look"),),
        )

    def test_what_inference_has_left_and_why_the_rest_is_not(self, shared: Settings):
        catalog = open_workspace(shared).catalog
        names = ("new", "older", "seen", "trained", "both", "gone")
        scans = {name: prepared(catalog, name) for name in names}
        dataset = dataset_of(catalog, scans["trained"], scans["both"], scans["gone"])
        seen(catalog, scans["older"], 6)
        for name in ("seen", "both"):
            seen(catalog, scans[name], 7)
        catalog.quarantine(scans["gone"].scan_id, "implausible", "look", None)
        add(catalog, "waits-for-preparation")
        assert infer.backlog(shared, model_of(shared, dataset)) == Backlog(
            left=(scans["new"].scan_id, scans["older"].scan_id), skipped=3, notes={"trained_on": 1}
        )


class TestSettling:
    def test_the_sum_is_the_ledger_and_the_untouched(self, shared: Settings):
        catalog = open_workspace(shared).catalog
        left = tuple(add(catalog, name).scan_id for name in "abcd")
        held = CaseOutcome("held", QUARANTINED, "l2_unresolved", "look")
        run = begin(shared)
        note(run, a=DONE, b=QUARANTINED, c=FAILED, d=SKIPPED)
        accounting, shown = run.settle(Backlog(left, 10, (held,)))
        assert accounting == Accounting(15, done=1, skipped=11, quarantined=2, failed=1)
        assert [(one.case_id, one.outcome) for one in shown] == [
            ("held", QUARANTINED),
            ("b", QUARANTINED),
            ("c", FAILED),
        ]
        stored = catalog.run(run.run_id)
        assert (stored.state, stored.accounting) == ("failed", accounting)

    def test_a_scan_of_which_nobody_spoke_is_lost_and_waits_on(self, shared: Settings):
        catalog = open_workspace(shared).catalog
        left = tuple(add(catalog, name).scan_id for name in "ab")
        run = begin(shared)
        note(run, a=DONE)
        accounting, (lost,) = run.settle(Backlog(left, 0))
        assert accounting == Accounting(2, done=1, failed=1)
        assert (lost.case_id, lost.outcome, lost.reason) == ("b", FAILED, "lost")
        assert "the next run takes it up" in str(lost.detail)
        assert catalog.outcomes_of(run.run_id, FAILED) == [lost]
        assert left[1] in prepare.backlog(shared).left

    def test_what_a_limit_leaves_out_is_not_lost(self, shared: Settings):
        left = tuple(add(open_workspace(shared).catalog, name).scan_id for name in "abc")
        run = begin(shared)
        note(run, a=DONE, b=DONE)
        accounting, shown = run.settle(Backlog(left, 4), limit=2)
        assert (accounting, shown) == (Accounting(6, done=2, skipped=4), [])
        assert open_workspace(shared).catalog.run(run.run_id).state == "completed"

    def test_settling_again_gives_the_same(self, shared: Settings):
        left = tuple(add(open_workspace(shared).catalog, name).scan_id for name in "ab")
        backlog, run = Backlog(left, 1), begin(shared)
        note(run, a=DONE)
        first = run.settle(backlog)
        assert run.settle(backlog) == first
        note(run, b=DONE)  # a worker that speaks up after the end
        assert run.settle(backlog)[0] == first[0]

    def test_a_run_that_crashed_while_settling_goes_on(
        self, shared: Settings, monkeypatch: pytest.MonkeyPatch
    ):
        catalog = open_workspace(shared).catalog
        left = tuple(add(catalog, name).scan_id for name in "ab")
        run = begin(shared, "flow-1")
        note(run, a=DONE)
        with monkeypatch.context() as crash:
            crash.setattr(catalog, "finish_run", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run.settle(Backlog(left, 0))
        again = begin(shared, "flow-1")
        assert again == run
        note(again, b=DONE)  # found to be left, and done this time
        assert again.settle(Backlog(left[1:], 1)) == (Accounting(2, done=2), [])

    def test_a_run_that_goes_on_counts_what_it_did_before_once(self, shared: Settings):
        """What was done before the crash is no longer left; the new backlog has it as untouched."""
        catalog = open_workspace(shared).catalog
        scans = [add(catalog, name) for name in "abcd"]
        prepared(catalog, "before")
        run = begin(shared, "flow-1")
        note(run, a=DONE, b=QUARANTINED, c=FAILED)
        catalog.quarantine(scans[1].scan_id, "why", "at length", run.run_id)
        catalog.fail(scans[2].scan_id, "why", "at length", run.run_id)
        record_prepared(catalog, scans[0])
        run, backlog = begin(shared, "flow-1"), prepare.backlog(shared)
        assert (len(backlog.left), backlog.skipped, len(backlog.held)) == (2, 2, 1)
        note(run, c=DONE, d=DONE)
        accounting, shown = run.settle(backlog)
        assert accounting == Accounting(5, done=3, skipped=1, quarantined=1)
        assert shown == [CaseOutcome("b", QUARANTINED, "why", "at length")]

    def test_a_ledger_that_does_not_add_up_is_told(self, shared: Settings, monkeypatch: pytest.MonkeyPatch):
        catalog = open_workspace(shared).catalog
        left = tuple(add(catalog, name).scan_id for name in "ab")
        monkeypatch.setattr(catalog, "note_outcome", lambda *_, **__: None)
        with pytest.raises(AccountingError, match="does not balance"):
            begin(shared).settle(Backlog(left, 0))


@dataclass
class Traffic:
    """What one pass asks of the database: statements, and on PostgreSQL also the rows that come back."""

    statements: list[str] = field(default_factory=list)
    rows: int = 0


@contextmanager
def traffic_of(catalog: Catalog) -> Iterator[Traffic]:
    found = Traffic()

    def listen(_: Any, cursor: Any, statement: str, *__: Any) -> None:
        found.statements.append(statement)
        found.rows += max(0, cursor.rowcount)

    event.listen(catalog.database.engine, "after_cursor_execute", listen)
    yield found
    event.remove(catalog.database.engine, "after_cursor_execute", listen)


def multiply(catalog: Catalog, first: ScanRecord, name: str, times: int) -> None:
    """Copies of a scan under names of their own."""
    columns = (
        "state, patient_id, revision, source_uri, source_fingerprint, label_ids, ct_key, "
        "predicted_model, predicted_version, created_at, updated_at"
    )
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {times})"
    target = f"INSERT INTO scans (case_id, {columns})"
    sqlite = catalog.database.engine.dialect.name == "sqlite"
    with catalog.database.engine.begin() as connection:
        connection.execute(
            text(
                (f"{target} {numbers}" if sqlite else f"{numbers} {target}")
                + f" SELECT '{name}-' || i, {columns} FROM n, scans WHERE scans.id = {first.scan_id}"
            )
        )
        connection.execute(text("ANALYZE"))


def a_night(settings: Settings, model: Model) -> tuple[Traffic, list[Accounting]]:
    """Prepare and infer over a cohort in which nothing changed."""
    with traffic_of(open_workspace(settings).catalog) as traffic:
        sums = []
        for flow, backlog in (
            ("prepare", prepare.backlog(settings)),
            ("infer", infer.backlog(settings, model)),
        ):
            run = Run.begin(settings, flow, {})
            work = prepare.prepare if flow == "prepare" else _infer_with(model)
            assert work(settings, backlog.left, run_id=run.run_id, owner="me") == []
            sums.append(run.settle(backlog)[0])
    return traffic, sums


def _infer_with(model: Model) -> Any:
    return lambda settings, left, **named: infer.infer(settings, model, left, **named)


def test_an_unchanged_night_costs_the_same_whatever_the_cohort_holds(shared: Settings):
    catalog = open_workspace(shared).catalog
    scan = prepared(catalog, "first")
    model = model_of(shared, dataset_of(catalog, scan))
    seen(catalog, scan, 7)
    small, sums = a_night(shared, model)
    assert sums == [Accounting(1, skipped=1)] * 2
    multiply(catalog, scan, "more", 10_000)
    large, sums = a_night(shared, model)
    assert sums == [Accounting(10_001, skipped=10_001)] * 2
    assert large.statements == small.statements
    assert large.rows == small.rows
    if catalog.database.engine.dialect.name == "sqlite":
        for statement in (text for text in large.statements if "FROM scans" in text and "count" in text):
            assert "COVERING INDEX" in _sqlite_plan(catalog, statement)


def _sqlite_plan(catalog: Catalog, statement: str) -> str:
    values = ("prepared", "m", 7)[: statement.count("?")]
    with catalog.database.engine.connect() as connection:
        return str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all())


def test_ten_thousand_scans_that_wait_are_listed_by_a_few_statements(shared: Settings):
    catalog = open_workspace(shared).catalog
    scan = add(catalog, "first")
    multiply(catalog, scan, "more", 10_000)
    with traffic_of(catalog) as traffic:
        left = prepare.backlog(shared).left
    assert len(left) == 10_001
    assert len(traffic.statements) <= 10
    whole = [statement for statement in traffic.statements if "source_uri" in statement]
    assert len(whole) == 1  # of the failed ones, which are none here
    assert "FOR UPDATE SKIP LOCKED" in whole[0] or catalog.database.engine.dialect.name == "sqlite"
