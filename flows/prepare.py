"""Prepare flow: landmarks, plausibility, region and crop of every scan that waits."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.accounting import begin, finish, shards
from retroln.catalog.accounting import Accounting
from retroln.settings import Settings
from retroln.steps import prepare as step
from tasks.stages import prepare_shard


@flow(name="prepare", validate_parameters=False)
def prepare(settings: Settings | None = None) -> State[Accounting]:
    """Crop every ingested scan to the region referenced to L2; doubtful landmarks wait for a person."""
    settings = settings or Settings()
    with begin(settings, "prepare", {"roi": settings.roi.model_dump()}) as run:
        left = step.scans_left(settings)
        outcomes = step.untouched(settings)
        for shard in shards(left, settings.shard_size):
            outcomes += prepare_shard(settings, shard, run.run_id)
        return finish(run, "prepare", outcomes)
