"""Catalog, part runs and decisions: what was done, by whom, with which sum."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.exc import IntegrityError

from retroln.catalog.accounting import Accounting
from retroln.catalog.database import Database
from retroln.catalog.models import ModelAudit, Run, utc_now
from retroln.catalog.records import AuditRecord, RunRecord, record_of
from retroln.errors import ConflictError, NotFoundError

RUNNING = "running"
MOVES = ("promote", "rollback")
"""Actions that move the champion; their rows form the chain."""


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

    def unfinished_runs(self) -> list[RunRecord]:
        """Runs that began and have not ended, oldest first; their process may be gone."""
        statement = select(Run).where(Run.finished_at.is_(None)).order_by(Run.id)
        with self._database.reading() as session:
            return [record_of(RunRecord, row, run_id=row.id) for row in session.scalars(statement)]

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
        follows: int | None = None,
    ) -> int:
        """Write down a decision for good; returns the row's id.

        Args:
            follows: for a promotion or a rollback, the champion-moving row that it was decided on
                (0 for none yet); left out, the last one at the time of writing.

        Raises:
            ConflictError: another decision has followed that row already; nothing is written.
        """
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
            if action in MOVES:
                last = session.scalar(_LAST_MOVE, {"model_name": model_name}) or 0
                row.follows = last if follows is None else follows
                if row.follows != last:
                    raise _decided_meanwhile(model_name, row.follows)
            session.add(row)
            try:
                session.flush()
            except IntegrityError as error:
                if row.follows is None:
                    raise
                # two at once: both saw the same last row
                raise _decided_meanwhile(model_name, row.follows) from error
            return row.id

    def audits(self, model_name: str | None = None) -> list[AuditRecord]:
        """Every decision (of one model), oldest first."""
        statement = select(ModelAudit).order_by(ModelAudit.id)
        if model_name is not None:
            statement = statement.where(ModelAudit.model_name == model_name)
        with self._database.reading() as session:
            return [record_of(AuditRecord, row, audit_id=row.id) for row in session.scalars(statement)]

    def models_decided_on(self) -> list[tuple[str, int]]:
        """Name and version of every model that anybody ever decided on, the champions among them."""
        statement = select(ModelAudit.model_name, ModelAudit.version).distinct()
        with self._database.reading() as session:
            return sorted(session.execute(statement).tuples())


_LAST_MOVE = select(func.max(ModelAudit.id)).where(
    ModelAudit.model_name == bindparam("model_name"), ModelAudit.follows.is_not(None)
)


def _decided_meanwhile(model_name: str, follows: int | None) -> ConflictError:
    return ConflictError(
        f"another decision on the champion of {model_name} came first",
        expected=f"audit row {follows} to be the last that moved it",
        got="a row that follows it already",
        fix="look at `retroln audit`, then decide again",
    )


def _counts(accounting: Accounting | None) -> dict[str, int | None]:
    names = ("in", "done", "skipped", "quarantined", "failed")
    found: dict[str, int] = accounting.to_dict() if accounting else {}
    return {f"n_{name}": found.get(name) for name in names}
