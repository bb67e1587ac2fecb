"""Drives a running stack as its users do: deliver CT by S3, start deployments, look at Prefect and MLflow."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events import Event
from prefect.events.filters import EventFilter

from infra.stack.plan import Stack
from infra.stack.supervisor import Supervisor
from infra.worker import children_of
from retroln.catalog.catalog import Catalog
from retroln.catalog.records import RunRecord
from retroln.catalog.states import ScanState
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom
from retroln.settings import Settings
from retroln.steps import promote
from retroln.steps.workspace import Workspace, open_workspace
from retroln.tracking.runs import training_run
from tests.way import own_ct

STACK_OPTIONS = ("--shard-workers", "2", "--webhook")
_TRAINED_TAGS = (promote.SUMMARY_TAG, promote.TEST_HASH_TAG, promote.DATASET_TAG, promote.SPEC_TAG)
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Platform:
    """A stack, a client of its Prefect, and settings as its operator has them."""

    stack: Stack
    prefect: SyncPrefectClient
    settings: Settings
    phantom: Phantom

    @property
    def workspace(self) -> Workspace:
        """Catalog, stores and registry as the operator sees them."""
        return open_workspace(self.settings)

    @property
    def catalog(self) -> Catalog:
        """The platform's catalog."""
        return self.workspace.catalog

    @property
    def supervisor(self) -> Supervisor:
        """What keeps the stack's programs running."""
        return Supervisor(self.stack.home)

    def deliver(self, case_id: str, patient_id: str, *, broken: bool = False, mask: bool = True) -> None:
        """Put a phantom into the source bucket as those who deliver do; each patient has a CT of his own."""
        volumes = {"vertebrae": self.phantom.vertebrae} | ({"mask": self.phantom.nodes} if mask else {})
        ct = own_ct(self.phantom.ct, patient_id)
        with TemporaryDirectory() as folder, closing(self.stack.s3("delivery").client()) as client:
            for name, volume in {**volumes, "ct": ct}.items():
                path = Path(folder, f"{name}.nii.gz")
                nifti.write_source(path, volume)
                data = path.read_bytes()
                body = data[: len(data) // 2] if broken and name == "ct" else data
                client.put_object(Bucket="source", Key=f"{patient_id}/{case_id}/{name}.nii.gz", Body=body)

    def start(self, deployment: str, flow: str | None = None, **parameters: Any) -> UUID:
        """Start a deployment as the button in the UI does."""
        found = self.prefect.read_deployment_by_name(f"{flow or deployment}/{deployment}")
        return self.prefect.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def run(self, deployment: str, *, timeout_s: float = 240, **parameters: Any) -> FlowRun:
        """Start a deployment and wait for its end."""
        return self.ended(self.start(deployment, **parameters), timeout_s)

    def ended(self, flow_run_id: UUID, timeout_s: float = 240) -> FlowRun:
        """The flow run, once it is in a final state."""

        def look() -> FlowRun | None:
            run = self.prefect.read_flow_run(flow_run_id)
            return run if run.state and run.state.is_final() else None

        return wait(look, timeout_s, f"flow run {flow_run_id} does not end")

    def in_state(self, flow_run_id: UUID, *names: str, timeout_s: float = 120) -> FlowRun:
        """The flow run, once its state has one of these names."""

        def look() -> FlowRun | None:
            run = self.prefect.read_flow_run(flow_run_id)
            return run if run.state_name in names else None

        return wait(look, timeout_s, f"flow run {flow_run_id} does not become {names}")

    def at_rest(self, timeout_s: float = 240) -> None:
        """Wait until no flow runs and none is due: an earlier test may have started something."""
        active = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}}}

        def look() -> bool:
            found = self.prefect.read_flow_runs(
                flow_run_filter=FlowRunFilter.model_validate(active), limit=200
            )
            return not any(_is_due(run) for run in found)

        wait(look, timeout_s, "the platform does not come to rest")

    def runs_of(self, flow: str) -> list[FlowRun]:
        """Flow runs of a flow that are not merely scheduled, newest first."""
        found = self.prefect.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
        flow_id = self.prefect.read_flow_by_name(flow).id
        return [run for run in found if run.flow_id == flow_id and run.start_time is not None]

    def children_of(self, run_id: int) -> list[FlowRun]:
        """Shards of a run of the catalog."""
        like = FlowRunFilter.model_validate({"name": {"like_": f"run {run_id}:"}})
        return self.prefect.read_flow_runs(flow_run_filter=like)

    def events(self, name: str) -> list[Event]:
        """Events of that name within the last hour, newest first."""
        since = datetime.now(UTC) - timedelta(hours=1)
        wanted = EventFilter.model_validate({"occurred": {"since": since}, "event": {"name": [name]}})
        return list(self.prefect.read_events(wanted, limit=50).events)

    def artifacts(self, flow_run_id: UUID) -> dict[str, str]:
        """What a flow run shows, by key; what its tries showed under one key stands together."""
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        shown: dict[str, str] = {}
        for one in self.prefect.read_artifacts(artifact_filter=of_run):
            key = str(one.key)
            shown[key] = "\n".join([*filter(None, [shown.get(key)]), str(one.data)])
        return shown

    def last_run(self, flow: str) -> RunRecord:
        """The catalog's newest run of a flow."""
        return next(run for run in self.catalog.runs() if run.flow == flow)

    @contextmanager
    def without_trigger(self, name: str) -> Iterator[None]:
        """Hold an automation back for the length of a block."""
        found = next(a for a in self.automations() if a["name"].endswith(name))
        self.prefect.request(
            "PATCH", "/automations/{id}", path_params={"id": found["id"]}, json={"enabled": False}
        )
        try:
            yield
        finally:
            self.prefect.request(
                "PATCH", "/automations/{id}", path_params={"id": found["id"]}, json={"enabled": True}
            )

    def automations(self) -> list[dict[str, Any]]:
        """Every automation, as the server has it."""
        found: list[dict[str, Any]] = self.prefect.request("POST", "/automations/filter", json={}).json()
        return found

    def register_again(self, version: int | None = None, **figures: float) -> int:
        """Register a version's bundle, or the newest's, as another one; figures given replace its own."""
        registry = self.workspace.registry
        version = version or registry.versions()[-1].version
        known = registry.tags(version)
        bundle = registry.fetch(version, self.settings.work_dir / "models")
        tags = {name: known[name] for name in _TRAINED_TAGS}
        tags[promote.SUMMARY_TAG] = json.dumps({**json.loads(tags[promote.SUMMARY_TAG]), **figures})
        with training_run(self.settings, name="registered again by a test", params={}) as run:
            return registry.register(bundle, run.run_id, tags)

    def states(self, *cases: str) -> set[ScanState]:
        """In which states these cases are."""
        found = [self.catalog.current_scan(case) for case in cases]
        return {scan.state for scan in found if scan}

    def pid(self, program: str) -> int:
        """Process id of one of the stack's programs."""
        return int(self.supervisor.states()[program]["pid"])

    def worker_processes(self, worker: str) -> list[int]:
        """Process ids of what keeps a worker and of the worker itself."""
        keeper = self.pid(worker)
        return [keeper, *children_of(keeper)]

    def flow_processes(self, worker: str) -> list[int]:
        """Process ids of the flow runs that a worker has started, and of what they started."""
        _, *inner = self.worker_processes(worker)
        return [pid for process in inner for pid in descendants(process)]

    @contextmanager
    def standing_still(self, *workers: str) -> Iterator[None]:
        """Flow runs of these workers do nothing for the length of a block."""
        stopped = [pid for worker in workers for pid in self.flow_processes(worker)]
        tell(signal.SIGSTOP, *stopped)
        try:
            yield
        finally:
            tell(signal.SIGCONT, *stopped)


def _is_due(run: FlowRun) -> bool:
    soon = datetime.now(UTC) + timedelta(seconds=2)
    return run.next_scheduled_start_time is None or run.next_scheduled_start_time <= soon


def hold_nightly_schedules(prefect: SyncPrefectClient) -> None:
    """A test that runs at four in the morning must not meet the nightly inference."""
    for deployment in prefect.read_deployments():
        for schedule in deployment.schedules:
            if schedule.active and deployment.name != "reconcile":
                prefect.update_deployment_schedule(deployment.id, schedule.id, active=False)


def wait(look: Callable[[], Seen | None], timeout_s: float, what: str) -> Seen:
    """What `look` sees, once it sees something."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} after {timeout_s:g} s")
        time.sleep(0.5)
    return seen


def descendants(pid: int) -> list[int]:
    """Process ids of all that a process started, and they in turn."""
    return [found for child in children_of(pid) for found in [child, *descendants(child)]]


def kill(*pids: int) -> None:
    """kill -9."""
    tell(signal.SIGKILL, *pids)


def tell(what: signal.Signals, *pids: int) -> None:
    """Send a signal to processes; one that is gone already is no error."""
    for pid in pids:
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            continue
