"""Ingest flow: every case of the source becomes a recorded scan or a named quarantine."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.accounting import begin, finish, shards
from retroln.catalog.accounting import Accounting
from retroln.settings import Settings
from tasks.stages import ingest_shard, list_source


@flow(name="ingest", validate_parameters=False)
def ingest(settings: Settings | None = None) -> State[Accounting]:
    """Validate, hash, canonicalise and record the CT that has arrived; unchanged cases are skipped."""
    settings = settings or Settings()
    with begin(settings, "ingest", {"source_uri": settings.source_uri}) as run:
        outcomes = []
        for shard in shards(list_source(settings), settings.shard_size):
            outcomes += ingest_shard(settings, tuple(shard), run.run_id)
        return finish(run, "ingest", outcomes)
