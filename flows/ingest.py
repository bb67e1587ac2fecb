"""Ingest flow: every case of the source becomes a recorded scan or a named quarantine."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.accounting import DAY_S, begin, settle_cases
from retroln.catalog.accounting import Accounting
from tasks import events
from tasks.artifacts import Progress
from tasks.policy import settings_in_use
from tasks.stages import ingest_cases, list_source


@flow(name="ingest", flow_run_name="ingest", timeout_seconds=DAY_S)
def ingest() -> State[Accounting]:
    """Validate, hash, canonicalise and record the CT that has arrived; unchanged cases are skipped."""
    settings = settings_in_use()
    with begin(settings, "ingest", {"source_uri": settings.source_uri}) as run:
        entries = list_source(settings)
        progress = Progress("ingest-progress", len(entries), "cases through ingest")
        ingest_cases(settings, entries, run.run_id, progress)
        accounting, state = settle_cases(run, "ingest", [entry.case_id for entry in entries])
        if accounting.done:
            events.scans_ingested(settings, accounting.done)
        return state
