"""Infer flow: the champion over every prepared scan that it has not seen."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.accounting import DAY_S, begin, rename, settle
from flows.fan_out import Size, fan_out
from flows.shard import told
from retroln.catalog.accounting import Accounting
from retroln.errors import NotFoundError
from retroln.steps import infer as step
from tasks import stages
from tasks.policy import settings_in_use
from tasks.results import show_results


@flow(name="infer", flow_run_name="infer", timeout_seconds=DAY_S)
def infer(shard_size: Size = 0, dask_address: str = "") -> State[Accounting]:
    """Label maps on the delivered grid, nodes and case pages for new CT; scans trained on are skipped.

    Args:
        shard_size: Cases per shard; 0 takes RETROLN_NETWORK_SHARD_SIZE.
        dask_address: Address of a Dask scheduler, e.g. tcp://dask:8786; empty uses the work pool.
    """
    settings = settings_in_use()
    try:
        model = stages.find_champion(settings)
    except NotFoundError as error:
        rename("infer: nothing is promoted yet")
        return Completed(name="NothingPromoted", message=str(error))
    size = shard_size or settings.network_shard_size
    with begin(settings, "infer", {"model": model.name, "version": model.version}) as run:
        backlog = step.backlog(settings, model)
        fan_out(run, backlog, task=stages.infer_shard, stage="infer", size=size, dask_address=dask_address)
        show_results(settings, run.run_id, model)
        return settle(run, "infer", backlog, model.cautions)


@flow(name="infer-shard", timeout_seconds=DAY_S)
def infer_shard(run_id: int, scan_ids: list[int]) -> State[None]:
    """Run the champion over some scans of a run. Started by the flow infer.

    Args:
        run_id: The catalog's run that these scans are counted in, and that names the model's version.
        scan_ids: Scans to infer; those that another worker has or finished are skipped.
    """
    return told(stages.infer_shard(settings_in_use(), tuple(scan_ids), run_id))
