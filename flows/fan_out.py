"""Where the shards of a backlog run: in this process, each as a flow run on a work pool, or on Dask.

Whichever it is, what was done stands in the catalog's ledger of the run. A shard whose worker died says
nothing; its cases are found missing there and given out again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import islice
from typing import Annotated, Any, cast
from uuid import UUID

from prefect import flow, runtime, tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelling
from pydantic import Field

from flows.sweep import start_again_if_stuck
from retroln.cli.heartbeat import TAG
from retroln.settings import Settings
from retroln.steps.runs import Backlog, Run
from retroln.steps.workspace import open_workspace
from tasks.artifacts import Progress
from tasks.stages import owner_of

_ROUNDS = 3  # a shard that dies again and again has a case that kills workers
_POLL_S = 2.0
_OPEN = 64  # shards; more than a site has workers, so that none waits for work, and one question shows all

Shard = tuple[int, ...]
Size = Annotated[int, Field(ge=0)]
"""Cases per shard; 0 takes the setting of the stage."""


def fan_out(run: Run, backlog: Backlog, *, task: Any, stage: str, size: int, dask_address: str = "") -> None:
    """Give out `backlog.left` in shards of `size` and return when each case has an outcome or no worker.

    Args:
        task: called as `task(settings, scan_ids, run_id)`; `<stage>-shard` is the deployment of the same.
        dask_address: scheduler of a Dask cluster; it wins over the setting `fan_out`.
    """
    progress = Progress(f"{stage}-progress", len(backlog.left), f"cases through {stage}")
    if dask_address:
        _on_dask(run, task, shards(backlog.left, size), dask_address)
    elif run.settings.fan_out == "workers":
        _on_workers(run, backlog.left, stage, size, progress)
    else:
        for number, shard in enumerate(shards(backlog.left, size), start=1):
            task(run.settings, shard, run.run_id)
            progress.reach(min(number * size, len(backlog.left)))


def shards(left: Sequence[int], size: int) -> list[Shard]:
    """Consecutive pieces of at most `size` scans."""
    return [tuple(left[start : start + size]) for start in range(0, len(left), size)]


def _on_workers(run: Run, left: Sequence[int], stage: str, size: int, progress: Progress) -> None:
    catalog = open_workspace(run.settings).catalog
    for attempt in range(_ROUNDS):
        missing = run.unreported(left)
        if not missing:
            return
        if attempt:
            get_run_logger().warning("%s cases were left by workers that died; given out again", len(missing))
        begun = (_start(run, stage, shard, attempt) for shard in shards(missing, size))
        children = wait_for(begun, run.settings, lambda: progress.reach(run.reported()))
        for child in children:  # a worker that died kept its claims
            catalog.release_all(owner_of(child.id))


def _start(run: Run, stage: str, shard: Shard, attempt: int) -> FlowRun:
    parameters = {"run_id": run.run_id, "scan_ids": list(shard)}
    name = f"{stage} run {run.run_id}: {len(shard)} cases from {shard[0]}"
    return start(f"{stage}-shard", parameters, name, key=f"{run.run_id}-{attempt}")


def start(deployment: str, parameters: dict[str, Any], name: str, key: str) -> FlowRun:
    """Start a deployment as a child of this run; under the same key and parameters it starts once."""
    content = sha256(f"{key} {sorted(parameters.items())}".encode()).hexdigest()
    started = run_deployment(
        f"{deployment}/{deployment}",
        parameters=parameters,
        timeout=0,
        flow_run_name=name,
        idempotency_key=f"{deployment}-{content}",
    )
    return cast(FlowRun, started)  # not the coroutine that Prefect's annotation allows for


def wait_for(
    children: Iterable[FlowRun], settings: Settings, tell: Callable[[], None] = lambda: None
) -> list[FlowRun]:
    """Return the children, in their order, when all have ended; if this run ends first, they are cancelled.

    Args:
        children: drawn as places come free, at most `_OPEN` of them being open, so an iterator that starts
            each when it is drawn starts no more than that at a time.
        tell: called at every look at them.
    """
    coming, order = iter(children), list[UUID]()
    present: dict[UUID, FlowRun] = {}
    ended: dict[UUID, FlowRun] = {}
    with get_client(sync_client=True) as client:
        try:
            while True:
                for child in islice(coming, _OPEN - len(present)):
                    order.append(child.id)
                    present[child.id] = child
                if not present:
                    return [ended[identifier] for identifier in order]
                over = _ended(client, present, settings)
                tell()
                for child in over:
                    ended[child.id] = child
                    del present[child.id]
                if not over:
                    time.sleep(_POLL_S)
        except BaseException:
            _cancel(client, present)
            raise


def _ended(client: SyncPrefectClient, children: Mapping[UUID, FlowRun], settings: Settings) -> list[FlowRun]:
    """Those that have ended, as they are now; one that somebody deleted has, and is as it was."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(children)))
    seen = {run.id: run for run in client.read_flow_runs(flow_run_filter=wanted)}
    over = []
    for identifier, child in children.items():
        run = seen.get(identifier) or _read(client, identifier)
        if run is None or (run.state and run.state.is_final()):
            over.append(run or child)
        else:
            start_again_if_stuck(client, run, settings)
    return over


def _read(client: SyncPrefectClient, identifier: UUID) -> FlowRun | None:
    try:
        return client.read_flow_run(identifier)
    except ObjectNotFound:
        return None


def _cancel(client: SyncPrefectClient, children: Iterable[UUID]) -> None:
    for child in children:
        with suppress(Exception):  # why this run ends matters more, and the next child may be reached
            state = client.read_flow_run(child).state
            if state and not state.is_final():
                client.set_flow_run_state(child, Cancelling(message="its parent was ended"))


def _on_dask(run: Run, task: Any, pieces: Sequence[Shard], address: str) -> None:
    """Dask's workers read their own settings: none travel with the task.

    All shards are submitted at once: what waits is a line in Dask's scheduler, and Prefect has no row of it.
    """
    from prefect_dask.task_runners import DaskTaskRunner

    runner: Any = DaskTaskRunner(address=address)

    @flow(name=f"{runtime.flow_run.get_flow_name()} on Dask", task_runner=runner)
    def on_dask() -> None:
        futures = [task.submit(None, piece, run.run_id) for piece in pieces]
        for future in futures:
            future.wait()

    with tags(TAG):  # a run of its own, which does not have this one's tags
        on_dask()
