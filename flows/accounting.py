"""How every flow ends: a stored, shown, balanced accounting and a state and name that tell the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome
from retroln.errors import RetroLNError
from retroln.settings import Settings
from retroln.steps.outages import riding_out
from retroln.steps.runs import Backlog, Run
from tasks import events
from tasks.artifacts import show_accounting

DAY_S = 24 * 3600


class CasesFailedError(RetroLNError):
    """Some cases failed; the rest is done. A failed flow's state holds it: Prefect wants an error there."""

    def __init__(self, message: str, accounting: Accounting) -> None:
        super().__init__(message)
        self.accounting = accounting

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling with the accounting."""
        return CasesFailedError, (str(self), self.accounting)


def begin(settings: Settings, flow: str, parameters: dict[str, Any]) -> Run:
    """Record the run under Prefect's own run id; a run that is started again goes on."""
    external_id = runtime.flow_run.get_id()
    return riding_out(lambda: Run.begin(settings, flow, parameters, external_id), settings.patience_s)


def settle(run: Run, stage: str, backlog: Backlog, cautions: Sequence[str] = ()) -> State[Accounting]:
    """End a run whose shards wrote to the ledger; `cautions` are shown with its sum."""
    accounting, shown = riding_out(lambda: run.settle(backlog), run.settings.patience_s)
    remarks = [f"{count} of the skipped: {reason}" for reason, count in backlog.notes.items() if count]
    return end(run, stage, accounting, shown, [*cautions, *remarks])


def settle_cases(run: Run, stage: str, case_ids: Sequence[str]) -> tuple[Accounting, State[Accounting]]:
    """End a run that answers for cases of the source; its accounting, and the flow's last state."""
    accounting, shown = riding_out(lambda: run.settle_cases(case_ids), run.settings.patience_s)
    return accounting, end(run, stage, accounting, shown)


def finish(run: Run, stage: str, outcomes: Sequence[CaseOutcome]) -> State[Accounting]:
    """End a run that has every outcome in hand."""
    accounting = riding_out(lambda: run.finish(outcomes), run.settings.patience_s)
    return end(run, stage, accounting, outcomes)


def end(
    run: Run,
    stage: str,
    accounting: Accounting,
    outcomes: Sequence[CaseOutcome],
    remarks: Sequence[str] = (),
) -> State[Accounting]:
    """Show the accounting; failed cases make the flow Failed, held ones a Completed that says so."""
    show_accounting(stage, accounting, outcomes, remarks)
    if reasons := run.quarantined():
        events.cases_quarantined(run.settings, stage, sum(reasons.values()), reasons)
    message = f"{accounting.done} done, {accounting.skipped} skipped, {accounting.quarantined} quarantined"
    rename(f"{stage}: {message}" + (f", {accounting.failed} failed" if accounting.failed else ""))
    if accounting.failed:
        failed = [o.case_id for o in outcomes if o.outcome is Outcome.FAILED]
        names = ", ".join(failed[:20]) + (" and others" if len(failed) > 20 else "")
        message = f"{message}, {accounting.failed} failed: {names}"
        return Failed(message=message, data=CasesFailedError(message, accounting))
    name = "Quarantined" if accounting.quarantined else "Completed"
    return Completed(name=name, message=message, data=accounting)


def rename(name: str) -> None:
    """Let the run's name in Prefect's lists say what it did."""
    change_own_run(name=name)


def change_own_run(**changes: Any) -> None:
    """Change name or tags of the flow run that this is; nothing outside of one."""
    if flow_run_id := runtime.flow_run.get_id():
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run_id), **changes)
