"""What a run shows in Prefect's pages: summary, accounting, links. All of it is written here."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from prefect import runtime
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome

_ROWS = 500  # a table is to be read; the catalog has the rest
_PROGRESS_S = 1.0  # thousands of known cases pass in less, and each step is a request


def show_accounting(
    stage: str, accounting: Accounting, outcomes: Sequence[CaseOutcome], remarks: Sequence[str] = ()
) -> None:
    """The balanced sum in words and as a table, and the cases that are held or failed, with what to do."""
    counts = accounting.to_dict()
    create_markdown_artifact(
        key=f"{stage}-summary",
        description=f"What {stage} did",
        markdown="\n\n".join([f"**{stage}**: {sum_in_words(accounting)}", *remarks]),
    )
    create_table_artifact(
        key=f"{stage}-accounting",
        description="in = done + skipped + quarantined + failed",
        table=[{"cases": name, "count": count} for name, count in counts.items()],
    )
    rows = [_row(o) for o in outcomes if o.outcome in (Outcome.QUARANTINED, Outcome.FAILED)]
    if rows:
        create_table_artifact(
            key=f"{stage}-held",
            description=f"{len(rows)} cases that need a person"
            + (f", the first {_ROWS}" if len(rows) > _ROWS else ""),
            table=rows[:_ROWS],
        )


def sum_in_words(accounting: Accounting) -> str:
    """The sum that every run must reach."""
    return (
        f"{accounting.n_in} in = {accounting.done} done + {accounting.skipped} skipped"
        f" + {accounting.quarantined} quarantined + {accounting.failed} failed"
    )


def show_text(key: str, markdown: str, description: str) -> None:
    """A paragraph on the run's page."""
    create_markdown_artifact(key=key, markdown=markdown, description=description)


def show_link(key: str, address: str | None, text: str) -> None:
    """A link on the run's page; nothing where there is no page to link to."""
    if address:
        create_link_artifact(key=key, link=address, link_text=text, description=text)


def show_rows(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """A table on the run's page; nothing when it is empty."""
    if rows:
        create_table_artifact(key=key, table=rows[:_ROWS], description=description)


class Progress:
    """A progress bar on the run's page, from 0 to `total`; nothing for runs with no work."""

    def __init__(self, key: str, total: int, description: str) -> None:
        self._total, self._shown, self._shown_at = total, 0.0, 0.0
        self._artifact: Any = None
        if total and runtime.flow_run.get_id():
            self._artifact = create_progress_artifact(0.0, key=key, description=description)

    def reach(self, done: int) -> None:
        """Show `done` of `total`; of steps below a percent or a second only the last is sent."""
        if self._artifact is None:
            return
        percent = 100.0 * done / self._total
        is_due = percent - self._shown >= 1.0 and monotonic() - self._shown_at >= _PROGRESS_S
        if is_due or (done >= self._total and percent != self._shown):
            update_progress_artifact(self._artifact, percent)
            self._shown, self._shown_at = percent, monotonic()


def _row(outcome: CaseOutcome) -> dict[str, Any]:
    return {
        "case": outcome.case_id,
        "outcome": outcome.outcome.value,
        "reason": outcome.reason,
        "what to do": outcome.detail,
    }
