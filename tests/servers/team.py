"""What a team does on a Prefect server that it shares with others: deploy, start, say that a run lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.events import Event, Resource
from prefect.events.related import tags_as_related_resources
from prefect.states import Completed, Failed, Pending, Retrying, Running, Suspended

from retroln.cli.heartbeat import TAG, VARIABLE

PREFECT_PAGE = 15
"""What the server answers at most to one question; 200 unless changed, which takes long to fill."""
OURS, THEIRS = [TAG], ["nightly", "retrolnx"]
_STATES: dict[str, Any] = {
    kind.__name__: kind for kind in (Pending, Running, Retrying, Suspended, Completed, Failed)
}


@dataclass(frozen=True)
class Team:
    """A client of the server, and what is done with it in a test."""

    client: SyncPrefectClient

    def deploy(
        self, name: str, tags: list[str], heartbeat_s: int | None = 30, entrypoint: str | None = None
    ) -> UUID:
        """A deployment `name/name`; what it runs does not matter here: no worker takes its runs."""
        environment = {} if heartbeat_s is None else {VARIABLE: str(heartbeat_s)}
        return self.client.create_deployment(
            self.client.create_flow_from_name(name),
            name,
            tags=tags,
            entrypoint=entrypoint,
            job_variables={"env": environment},
        )

    def start(self, tags: list[str], state: str = "Running") -> FlowRun:
        """A run of a new deployment with these tags, in this state."""
        return self.start_again(self.deploy(f"flow-{uuid4().hex[:8]}", tags), state)

    def start_again(self, deployment: UUID, state: str = "Running") -> FlowRun:
        """One more run of a deployment."""
        run = self.client.create_flow_run_from_deployment(deployment)
        self.set(run.id, state)
        return run

    def set(self, run: UUID, state: str, message: str | None = None) -> None:
        """Give a run a state as a worker would."""
        self.client.set_flow_run_state(run, _STATES[state](message=message), force=True)

    def beat(self, run: FlowRun) -> None:
        """One heartbeat, with what Prefect's engine puts into it."""
        event = Event(
            event="prefect.flow-run.heartbeat",
            resource=Resource({"prefect.resource.id": f"prefect.flow-run.{run.id}"}),
            related=tags_as_related_resources(run.tags),
        )
        self.client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()

    def state(self, run: FlowRun) -> str | None:
        """The name of a run's present state."""
        return self.client.read_flow_run(run.id).state_name
