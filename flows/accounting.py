"""How every flow ends: a stored, shown, balanced accounting and a state that tells the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from prefect import runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from retroln.catalog.accounting import Accounting, CaseOutcome
from retroln.settings import Settings
from retroln.steps.runs import Run
from tasks.policy import show_accounting

Item = TypeVar("Item")


def begin(settings: Settings, flow: str, parameters: dict[str, Any]) -> Run:
    """Record the run under Prefect's own run id."""
    return Run.begin(settings, flow, parameters, external_id=runtime.flow_run.get_id())


def finish(run: Run, stage: str, outcomes: Sequence[CaseOutcome]) -> State[Accounting]:
    """Store and show the accounting; failed cases make the flow Failed, held ones a named Completed."""
    accounting = run.finish(outcomes)
    show_accounting(stage, accounting, outcomes)
    message = f"{accounting.done} done, {accounting.skipped} skipped, {accounting.quarantined} quarantined"
    if accounting.failed:
        names = ", ".join(o.case_id for o in outcomes if o.outcome.value == "failed")
        return Failed(message=f"{message}, {accounting.failed} failed: {names}", data=accounting)
    name = "Quarantined" if accounting.quarantined else "Completed"
    return Completed(name=name, message=message, data=accounting)


def shards(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Consecutive pieces of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]
