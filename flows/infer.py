"""Infer flow: the champion over every prepared scan that it has not seen."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.accounting import begin, finish, shards
from retroln.catalog.accounting import Accounting
from retroln.settings import Settings
from retroln.steps import infer as step
from tasks.stages import fetch_champion, infer_shard


@flow(name="infer", validate_parameters=False)
def infer(settings: Settings | None = None) -> State[Accounting]:
    """Label maps on the delivered grid, nodes and case pages for new CT; scans trained on are skipped."""
    settings = settings or Settings()
    model = fetch_champion(settings)
    with begin(settings, "infer", {"model": model.name, "version": model.version}) as run:
        outcomes = step.untouched(settings, model)
        for shard in shards(step.scans_left(settings, model), settings.shard_size):
            outcomes += infer_shard(settings, model, shard, run.run_id)
        return finish(run, "infer", outcomes)
