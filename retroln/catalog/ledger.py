"""Catalog, part ledger: what each run did with each case, noted by whichever worker did it."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import func, or_, select

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.database import Database
from retroln.catalog.deliveries import DELIVERY_HELD
from retroln.catalog.models import CaseEvent, HeldDelivery, Prediction, RunOutcome, Scan
from retroln.catalog.scans import clean
from retroln.catalog.states import ScanState
from retroln.catalog.upsert import insert_into

_OUTCOME_OF = {
    ScanState.INGESTED: Outcome.DONE,
    ScanState.PREPARED: Outcome.DONE,
    ScanState.QUARANTINED: Outcome.QUARANTINED,
}
"""What a run did that brought a scan into a state."""
_OF_THE_SCAN = CaseEvent.reason.is_distinct_from(DELIVERY_HELD)


class LedgerQueries:
    """Outcomes of runs; each method is one transaction."""

    _database: Database

    def note_outcome(self, run_id: int, *outcomes: CaseOutcome, replacing: bool = True) -> None:
        """Write down what became of cases; noting the same again changes nothing.

        Args:
            run_id: the run that the worker works for.
            outcomes: what became of cases.
            replacing: a case that was done again takes its new outcome; False keeps what was noted
                before, for an outcome that says no more than that nothing was done.

        Raises:
            ConflictError: no such run.
        """
        rows = [
            {
                "run_id": run_id,
                "case_id": one.case_id,
                "outcome": one.outcome.value,
                "reason": one.reason,
                "detail": clean(one.detail),
            }
            for one in outcomes
        ]
        if not rows:
            return
        with self._database.writing() as session:
            noted = insert_into(session, RunOutcome)
            keys = ["run_id", "case_id"]
            if replacing:
                changed = {name: noted.excluded[name] for name in ("outcome", "reason", "detail")}
                session.execute(noted.on_conflict_do_update(index_elements=keys, set_=changed), rows)
            else:
                session.execute(noted.on_conflict_do_nothing(index_elements=keys), rows)

    def outcomes_of(self, run_id: int, *outcomes: Outcome) -> list[CaseOutcome]:
        """The run's cases with one of `outcomes` (none given: all), in case order."""
        statement = select(RunOutcome).where(RunOutcome.run_id == run_id).order_by(RunOutcome.case_id)
        if outcomes:
            statement = statement.where(RunOutcome.outcome.in_(outcomes))
        with self._database.reading() as session:
            return [
                CaseOutcome(row.case_id, Outcome(row.outcome), row.reason, row.detail)
                for row in session.scalars(statement)
            ]

    def count_outcomes(self, run_id: int) -> dict[Outcome, int]:
        """How many of the run's cases had each outcome, every outcome listed."""
        statement = (
            select(RunOutcome.outcome, func.count())
            .where(RunOutcome.run_id == run_id)
            .group_by(RunOutcome.outcome)
        )
        with self._database.reading() as session:
            found = session.execute(statement).tuples()
            return dict.fromkeys(Outcome, 0) | {Outcome(outcome): count for outcome, count in found}

    def outcome_by(self, scan_id: int, run_id: int) -> CaseOutcome | None:
        """What this run made of a scan, from the records themselves; None if it did nothing to it."""
        of_run = (CaseEvent.scan_id == scan_id, CaseEvent.run_id == run_id)
        events = select(CaseEvent).where(*of_run, _OF_THE_SCAN).order_by(CaseEvent.id.desc())
        inferred = (Prediction.scan_id == scan_id, Prediction.run_id == run_id)
        with self._database.reading() as session:
            event = session.scalars(events).first()
            if event is not None and event.to_state in _OUTCOME_OF:
                return _outcome_of(event)
            if session.scalars(select(Prediction.id).where(*inferred)).first() is not None:
                return CaseOutcome(session.get_one(Scan, scan_id).case_id, Outcome.DONE)
        return None

    def taken_in_by(self, run_id: int) -> dict[int, CaseOutcome]:
        """What an ingest made of each scan that it recorded, or brought back, by scan id, as `outcome_by`."""
        begun = or_(CaseEvent.from_state.is_(None), CaseEvent.from_state == ScanState.SUPERSEDED)
        taken_in = (begun, CaseEvent.to_state.in_(_OUTCOME_OF))
        statement = select(CaseEvent).where(CaseEvent.run_id == run_id, *taken_in)
        with self._database.reading() as session:
            return {event.scan_id: _outcome_of(event) for event in session.scalars(statement)}

    def quarantined_by(self, run_id: int) -> dict[str, int]:
        """How many cases, or deliveries, this run itself held, by reason; those held before do not count."""
        cases = (
            select(CaseEvent.reason, func.count())
            .where(CaseEvent.run_id == run_id, CaseEvent.to_state == ScanState.QUARANTINED, _OF_THE_SCAN)
            .group_by(CaseEvent.reason)
        )
        deliveries = (
            select(HeldDelivery.reason, func.count())
            .where(HeldDelivery.run_id == run_id)
            .group_by(HeldDelivery.reason)
        )
        counts: Counter[str] = Counter()
        with self._database.reading() as session:
            for statement in (cases, deliveries):
                counts.update({str(reason): number for reason, number in session.execute(statement).tuples()})
        return dict(counts)


def _outcome_of(event: CaseEvent) -> CaseOutcome:
    return CaseOutcome(event.case_id, _OUTCOME_OF[ScanState(event.to_state)], event.reason, event.detail)
