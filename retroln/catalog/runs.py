"""Catalog, part runs and decisions: what was done, by whom, with which sum."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from retroln.catalog.accounting import Accounting
from retroln.catalog.database import Database
from retroln.catalog.models import ModelAudit, Run, utc_now
from retroln.catalog.records import AuditRecord, RunRecord, record_of
from retroln.errors import ConflictError, NotFoundError

RUNNING = "running"


class RunQueries:
    """Runs and the append-only model audit."""

    _database: Database

    def begin_run(self, flow: str, parameters: dict[str, Any], external_id: str | None = None) -> int:
        """Record that `flow` began; returns the run's id.

        A flow that its orchestrator starts again under the same `external_id` goes on with its
        unfinished run.
        """
        with self._database.writing() as session:
            if external_id is not None:
                same = (Run.flow == flow, Run.external_id == external_id, Run.finished_at.is_(None))
                if found := session.scalars(select(Run).where(*same).order_by(Run.id.desc())).first():
                    return found.id
            run = Run(flow=flow, parameters=parameters, external_id=external_id, state=RUNNING)
            session.add(run)
            session.flush()
            return run.id

    def finish_run(self, run_id: int, accounting: Accounting | None, state: str) -> None:
        """Close a run with its balanced accounting (None when it never got to count).

        Raises:
            NotFoundError: no such run.
            ConflictError: the run is finished already, with another result.
        """
        counts = _counts(accounting)
        with self._database.writing() as session:
            run = session.get(Run, run_id, with_for_update=True)
            if run is None:
                raise NotFoundError(f"no run {run_id} in the catalog")
            if run.finished_at is not None:
                if run.state == state and {name: getattr(run, name) for name in counts} == counts:
                    return
                raise ConflictError(f"run {run_id} is finished already", got=f"{run.state}, now {state}")
            run.state, run.finished_at = state, utc_now()
            for name, value in counts.items():
                setattr(run, name, value)

    def runs(self, limit: int = 100) -> list[RunRecord]:
        """The latest runs, newest first."""
        with self._database.reading() as session:
            rows = session.scalars(select(Run).order_by(Run.id.desc()).limit(limit))
            return [record_of(RunRecord, row, run_id=row.id) for row in rows]

    def run(self, run_id: int) -> RunRecord:
        """One run. Raises `NotFoundError`."""
        with self._database.reading() as session:
            row = session.get(Run, run_id)
            if row is None:
                raise NotFoundError(f"no run {run_id} in the catalog")
            return record_of(RunRecord, row, run_id=row.id)

    def add_audit(
        self,
        *,
        action: str,
        model_name: str,
        version: int,
        reviewer: str,
        comment: str,
        previous_version: int | None = None,
        gate: dict[str, Any] | None = None,
    ) -> int:
        """Write down a decision for good; returns the row's id."""
        row = ModelAudit(
            action=action,
            model_name=model_name,
            version=version,
            previous_version=previous_version,
            reviewer=reviewer,
            comment=comment,
            gate=gate or {},
        )
        with self._database.writing() as session:
            session.add(row)
            session.flush()
            return row.id

    def audits(self, model_name: str | None = None) -> list[AuditRecord]:
        """Every decision (of one model), oldest first."""
        statement = select(ModelAudit).order_by(ModelAudit.id)
        if model_name is not None:
            statement = statement.where(ModelAudit.model_name == model_name)
        with self._database.reading() as session:
            return [record_of(AuditRecord, row, audit_id=row.id) for row in session.scalars(statement)]


def _counts(accounting: Accounting | None) -> dict[str, int | None]:
    names = ("in", "done", "skipped", "quarantined", "failed")
    found: dict[str, int] = accounting.to_dict() if accounting else {}
    return {f"n_{name}": found.get(name) for name in names}
