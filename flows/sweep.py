"""Sweep: no run stays open or pending for ever, no claim outlives its worker, no metric waits undelivered.

Prefect's automation catches runs whose heartbeat stopped. This catches those that never had one, those
that run for too long, and the catalog's own records of both. Runs without RetroLN's tag are somebody else's.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Scheduled

from retroln.cli.heartbeat import TAG, UNSET_S, heartbeat_s, silence_s
from retroln.settings import Settings
from retroln.steps.runs import Run
from retroln.steps.workspace import open_workspace
from retroln.tracking.runs import replay_waiting
from tasks.stages import OWNER

_SILENT_S = 300  # at least: the automation comes first


def sweep(settings: Settings) -> list[str]:
    """Close what died and say so, one sentence each."""
    with get_client(sync_client=True) as client:
        remarks = [*_close_flow_runs(client, settings), *_close_catalog_runs(client, settings)]
        remarks += _free_claims(client, settings)
    if lines := replay_waiting(settings):
        remarks.append(f"{lines} lines of metrics that had waited are in MLflow now")
    return remarks


def _close_flow_runs(client: SyncPrefectClient, settings: Settings) -> list[str]:
    """Our deployed runs that say Running and are over-age, or without any sign of life for minutes."""
    remarks = []
    for run in _present(client):
        if start_again_if_stuck(client, run, settings):
            remarks.append(f"{run.name} is given to another worker: the one that took it did not start it")
        elif why := _dead(client, run, settings):
            client.set_flow_run_state(run.id, Crashed(message=why), force=True)
            remarks.append(f"{run.name} is closed: {why}")
    return remarks


def _present(client: SyncPrefectClient) -> list[FlowRun]:
    """Every run of ours that runs or is about to, read to the end before any changes its state."""
    ours = FlowRunFilter.model_validate(
        {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}, "tags": {"all_": [TAG]}}
    )
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=ours, sort=FlowRunSort.ID_DESC, offset=len(found)):
        found += page
    return found


def start_again_if_stuck(client: SyncPrefectClient, run: FlowRun, settings: Settings) -> bool:
    """Give a deployed run back to its queue when the worker that took it died before it could start it."""
    state = run.state
    if run.deployment_id is None or state is None or not state.is_pending():
        return False
    if datetime.now(UTC) - state.timestamp < timedelta(seconds=settings.max_pending_s):
        return False
    client.set_flow_run_state(run.id, Scheduled(message="taken by a worker and not started"), force=True)
    return True


def _dead(client: SyncPrefectClient, run: FlowRun, settings: Settings) -> str | None:
    if run.deployment_id is None or str(run.id) == runtime.flow_run.get_id() or run.start_time is None:
        return None
    if not (run.state and run.state.is_running()):
        return None
    now = datetime.now(UTC)
    if now - run.start_time > timedelta(hours=settings.max_run_h):
        return f"it ran for more than {settings.max_run_h:g} h"
    silent_s = _silence_s(client, run.deployment_id)
    since = now - timedelta(seconds=silent_s)
    if run.state.timestamp > since or _has_heartbeat(client, run.id, since):
        return None
    return f"no sign of life for {silent_s} s: its process is gone"


def _silence_s(client: SyncPrefectClient, deployment_id: UUID) -> int:
    """How long runs of a deployment may be silent: minutes, or longer if their heartbeat is that slow."""
    try:
        beat = heartbeat_s(client.read_deployment(deployment_id).job_variables)
    except ObjectNotFound:  # deleted under the run
        beat = None
    return max(_SILENT_S, silence_s(beat or UNSET_S))


def _has_heartbeat(client: SyncPrefectClient, flow_run_id: UUID, since: datetime) -> bool:
    wanted = EventFilter.model_validate(
        {
            "occurred": {"since": since},
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{flow_run_id}"]},
        }
    )
    return bool(client.read_events(wanted, limit=1).events)


def _close_catalog_runs(client: SyncPrefectClient, settings: Settings) -> list[str]:
    """The catalog's records of runs that ended without closing them: over by Prefect, or over-age."""
    oldest = datetime.now(UTC) - timedelta(hours=settings.max_run_h)
    remarks = []
    for run in open_workspace(settings).catalog.unfinished_runs():
        is_dead = run.started_at < oldest or (run.external_id and _is_over(client, run.external_id))
        if is_dead and Run(settings, run.run_id).cut_short():  # it may have counted itself since
            remarks.append(f"run {run.run_id} of {run.flow} had been cut short")
    return remarks


def _free_claims(client: SyncPrefectClient, settings: Settings) -> list[str]:
    """Claims of flow runs that have ended need not wait for their lease."""
    catalog = open_workspace(settings).catalog
    owners = {claim.owner for claim in catalog.claims() if claim.owner.startswith(OWNER)}
    dead = [owner for owner in owners if _is_over(client, owner.removeprefix(OWNER))]
    freed = sum(catalog.release_all(owner) for owner in dead)
    return [f"{freed} cases of workers that died are free again"] if freed else []


def _is_over(client: SyncPrefectClient, flow_run_id: str) -> bool:
    """Whether a flow run has ended; one that this server does not know may belong to another."""
    try:
        found: Any = client.read_flow_run(UUID(flow_run_id))
    except (ObjectNotFound, ValueError):
        return False
    return bool(found.state and found.state.is_final())
