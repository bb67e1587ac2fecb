"""Ingest flow: every case of the source becomes a recorded scan or a named quarantine."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.accounting import DAY_S, begin, finish
from flows.fan_out import Size
from retroln.catalog.accounting import Accounting, Outcome
from tasks import events
from tasks.artifacts import Progress
from tasks.policy import settings_in_use
from tasks.stages import ingest_shard, list_source


@flow(name="ingest", flow_run_name="ingest", timeout_seconds=DAY_S)
def ingest(shard_size: Size = 0) -> State[Accounting]:
    """Validate, hash, canonicalise and record the CT that has arrived; unchanged cases are skipped.

    Args:
        shard_size: Cases per task; 0 takes RETROLN_SHARD_SIZE.
    """
    settings = settings_in_use()
    size = shard_size or settings.shard_size
    with begin(settings, "ingest", {"source_uri": settings.source_uri, "shard_size": size}) as run:
        entries = list_source(settings)
        progress = Progress("ingest-progress", len(entries), "cases through ingest")
        outcomes = []
        for first in range(0, len(entries), size):
            outcomes += ingest_shard(settings, entries[first : first + size], run.run_id)
            progress.reach(len(outcomes))
        state = finish(run, "ingest", outcomes)
        if done := sum(outcome.outcome is Outcome.DONE for outcome in outcomes):
            events.scans_ingested(settings, done)
        return state
