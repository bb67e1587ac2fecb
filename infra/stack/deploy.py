"""What Prefect's server holds before a flow runs: pools, queues, automations, deployments.

Only `PREFECT_API_URL`, `PREFECT_API_AUTH_STRING` and `RETROLN_*` are needed, so the same call serves the
local stack, containers and Kubernetes. Repeating it is harmless.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from retroln.cli.heartbeat import (
    FAILING,
    OVER_AGE,
    TAG,
    VARIABLE,
    WATCHED_FROM,
    ZOMBIE,
    heartbeat_s,
    of_ours,
    silence_s,
)
from retroln.settings import Settings

QUEUES = {"cpu-pool": ("flows", "shards"), "gpu-pool": ("inference", "training")}
# events carry a state's name, which says more than its type in RetroLN's flows
_ENDS = (
    "Completed",
    "Quarantined",
    "NothingPromoted",
    "Rejected",
    "Failed",
    "Refused",
    "Cancelled",
    "Crashed",
)
_ENDED = {f"prefect.flow-run.{name}" for name in _ENDS}
_BLOCK = "retroln-notify"


def deploy(settings: Settings, pool_type: str = "process") -> None:
    """Make pools and queues, automations, and every deployment of prefect.yaml.

    Raises:
        RuntimeError: prefect.yaml has a deployment whose runs could not be watched, or Prefect takes it not.
    """
    from prefect.client.orchestration import get_client

    heartbeat = slowest_heartbeat_s(Path("prefect.yaml"))
    with get_client(sync_client=True) as client:
        for pool, queues in QUEUES.items():
            _ensure_pool(client, pool, pool_type)
            for priority, queue in enumerate(queues, start=1):
                _ensure_queue(client, pool, queue, priority)
    make_automations(settings, silence_s(heartbeat))
    environment = {"RETROLN_HOME": str(Path.cwd()), **os.environ}
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        raise RuntimeError(f"prefect deploy --all failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def slowest_heartbeat_s(path: Path) -> int:
    """The slowest heartbeat of the deployments of a prefect.yaml.

    Raises:
        RuntimeError: one has no tag or no heartbeat: its runs would be nobody's, or be taken for dead.
    """
    import yaml

    deployments = yaml.safe_load(path.read_text())["deployments"]
    beats = {}
    for entry in deployments:
        beat = heartbeat_s(entry["work_pool"].get("job_variables"))
        if beat is None or TAG not in entry.get("tags", ()):
            raise RuntimeError(f"{path}: {entry['name']} lacks tag {TAG} or {VARIABLE} in its job_variables")
        beats[entry["name"]] = beat
    return max(beats.values())


def _ensure_pool(client: Any, name: str, kind: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    try:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=_template(kind)))
    except ObjectAlreadyExists:
        return


def _template(kind: str) -> dict[str, Any]:
    """The worker type's own template; pools of other types get theirs by `prefect work-pool create`."""
    from prefect.workers.process import ProcessWorker

    return ProcessWorker.get_default_base_job_template() if kind == "process" else {}


def _ensure_queue(client: Any, pool: str, queue: str, priority: int) -> None:
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_queue_by_name(queue, work_pool_name=pool)
    except ObjectNotFound:
        client.request(
            "POST",
            "/work_pools/{work_pool_name}/queues",
            path_params={"work_pool_name": pool},
            json={"name": queue, "priority": priority},
        )


def make_automations(settings: Settings, silent_s: int) -> None:
    """Runs that die unseen become Crashed; failing and over-age runs notify when there is an address.

    All of them see runs with `TAG` alone: the server may be shared, and others' runs are not ours to end.
    """
    from prefect.automations import Automation
    from prefect.events.actions import ChangeFlowRunState, DoNothing
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.states import StateType

    our_runs: Any = {"match": {"prefect.resource.id": "prefect.flow-run.*"}, "match_related": of_ours()}
    notify = _notify_action(settings) or DoNothing()
    for automation in (
        Automation(
            name=ZOMBIE,
            description="A worker that was killed cannot say so; its runs would stay Running for ever.",
            trigger=EventTrigger(
                after=set(WATCHED_FROM),
                expect={"prefect.flow-run.*"},  # any sign of life, suspension included
                **our_runs,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=silent_s),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED, message=f"no heartbeat for {silent_s} s: its process is gone"
                )
            ],
        ),
        Automation(
            name=FAILING,
            description="A run ended Failed or Crashed.",
            trigger=EventTrigger(
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
                **our_runs,
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[notify],
        ),
        Automation(
            name=OVER_AGE,
            description="A run is still not done after RETROLN_MAX_RUN_H hours; reconcile closes it.",
            trigger=EventTrigger(
                after={"prefect.flow-run.Running"},
                expect={*_ENDED, "prefect.flow-run.Suspended"},
                **our_runs,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(hours=settings.max_run_h),
            ),
            actions=[notify],
        ),
    ):
        _replace(automation)


def _replace(automation: Any) -> None:
    """Give the automation of this name this content; of several, which deploys at once may make, keep one."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        present = client.read_automations_by_name(automation.name)
        for surplus in present[1:]:
            client.delete_automation(surplus.id)
    if not present:
        automation.create()
        return
    automation.id, automation.enabled = present[0].id, present[0].enabled
    automation.update()


def _notify_action(settings: Settings) -> Any:
    """Post to `RETROLN_NOTIFY_URL`; the address is kept in a secret block, not in the automation."""
    if not settings.notify_url or not settings.notify_url.get_secret_value():
        return None
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.events.actions import SendNotification

    block = CustomWebhookNotificationBlock(
        name="RetroLN",
        url="{{notify_url}}",
        secrets={"notify_url": settings.notify_url.get_secret_value()},
        json_data={"text": "{{subject}}\n{{body}}"},
    )
    identifier = block.save(_BLOCK, overwrite=True)
    return SendNotification(
        block_document_id=identifier,
        subject="RetroLN: {{ flow_run.name }} is {{ flow_run.state.name }}",
        body="{{ flow.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
    )
