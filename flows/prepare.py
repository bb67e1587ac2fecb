"""Prepare flow: landmarks, plausibility, region and crop of every scan that waits."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.accounting import DAY_S, begin, settle
from flows.fan_out import Size, fan_out
from flows.shard import told
from retroln.catalog.accounting import Accounting
from retroln.settings import Settings
from retroln.steps import prepare as step
from tasks import stages
from tasks.held import show_held
from tasks.policy import settings_in_use

_SENTENCES = 30  # a run's page is to be read; `retroln status CASE` has the rest


@flow(name="prepare", flow_run_name="prepare", timeout_seconds=DAY_S)
def prepare(shard_size: Size = 0, again: bool = False, dask_address: str = "") -> State[Accounting]:
    """Crop every ingested scan to the region referenced to L2; doubtful landmarks wait for a person.

    Args:
        shard_size: Cases per shard; 0 takes RETROLN_SHARD_SIZE, or with landmarks by TotalSegmentator
            RETROLN_NETWORK_SHARD_SIZE.
        again: Also cut anew what was cut by another region than the present one.
        dask_address: Address of a Dask scheduler, e.g. tcp://dask:8786; empty uses the work pool.
    """
    settings = settings_in_use()
    size = shard_size or _usual_size(settings)
    with begin(settings, "prepare", {"roi": settings.roi.model_dump(), "again": again}) as run:
        if again:
            step.reopen(settings)
        backlog = step.backlog(settings)
        fan_out(
            run, backlog, task=stages.prepare_shard, stage="prepare", size=size, dask_address=dask_address
        )
        show_held(settings, run.run_id)
        return settle(run, "prepare", backlog, step.said_of(settings, run.run_id)[:_SENTENCES])


def _usual_size(settings: Settings) -> int:
    return settings.shard_size if settings.landmarks == "delivered" else settings.network_shard_size


@flow(name="prepare-shard", timeout_seconds=DAY_S)
def prepare_shard(run_id: int, scan_ids: list[int]) -> State[None]:
    """Prepare some scans of a run. Started by the flow prepare.

    Args:
        run_id: The catalog's run that these scans are counted in.
        scan_ids: Scans to prepare; those that another worker has or finished are skipped.
    """
    return told(stages.prepare_shard(settings_in_use(), tuple(scan_ids), run_id))
