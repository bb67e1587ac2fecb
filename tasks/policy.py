"""What the tasks share: settings, progress and how to report accounting to Prefect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome

listeners: list[Callable[[Any], None]] = []
"""Called in this process with every `CaseOutcome` and every epoch's figures: progress on a terminal."""


def publish(event: Any) -> None:
    """Hand an event to every listener."""
    for listener in listeners:
        listener(event)


def log_outcome(outcome: CaseOutcome) -> None:
    """Tell listeners, and name a case that was held back or failed in the run's log."""
    publish(outcome)
    if outcome.outcome in (Outcome.QUARANTINED, Outcome.FAILED):
        get_run_logger().warning("%s %s: %s", outcome.case_id, outcome.outcome.value, outcome.detail)


def show_accounting(stage: str, accounting: Accounting, outcomes: Sequence[CaseOutcome]) -> None:
    """Table of held and failed cases plus the balanced sum, as artifacts of the run."""
    create_markdown_artifact(
        key=f"{stage}-accounting",
        markdown=(
            f"**{stage}**: {accounting.n_in} in = {accounting.done} done + {accounting.skipped} skipped"
            f" + {accounting.quarantined} quarantined + {accounting.failed} failed"
        ),
    )
    rows: list[dict[str, Any]] = [
        {"case": o.case_id, "outcome": o.outcome.value, "reason": o.reason, "what to do": o.detail}
        for o in outcomes
        if o.outcome in (Outcome.QUARANTINED, Outcome.FAILED)
    ]
    if rows:
        create_table_artifact(key=f"{stage}-held", table=rows)
