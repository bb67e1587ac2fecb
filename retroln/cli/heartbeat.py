"""How Prefect learns that a run is dead: whose runs are watched, how often they say that they live, how long
they may be silent. What deploys, what sweeps and the doctor agree by this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TAG = "retroln"
"""On every deployment of prefect.yaml and so on its runs; a run without it is somebody else's."""

ZOMBIE = "retroln: crash runs whose heartbeat stopped"
FAILING = "retroln: tell about failing runs"
OVER_AGE = "retroln: tell about over-age runs"

WATCHED_FROM = frozenset(
    {"prefect.flow-run.Running", "prefect.flow-run.Retrying", "prefect.flow-run.heartbeat"}
)
"""What `ZOMBIE` counts the silence from; a process may be killed before its first heartbeat."""

VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
UNSET_S = 180
"""Prefect's own heartbeat, of a run whose deployment sets none."""

_BEATS = 3  # one may be lost and one late


def heartbeat_s(job_variables: Mapping[str, Any] | None) -> int | None:
    """Seconds between the heartbeats of a deployment's runs; None if its `job_variables` set none.

    They win over the environment of the worker, so that no worker has a heartbeat of its own.
    """
    value = ((job_variables or {}).get("env") or {}).get(VARIABLE)
    return None if value is None else int(value)


def silence_s(heartbeat_s: int) -> int:
    """Seconds without a sign of life after which a run with this heartbeat is dead."""
    return _BEATS * heartbeat_s


def is_limited(automation: Mapping[str, Any]) -> bool:
    """Whether an automation, as Prefect's API has it, looks at runs with `TAG` alone."""
    related = automation["trigger"].get("match_related") or {}
    return of_ours().items() <= related.items() if isinstance(related, Mapping) else False


def is_watched_from_the_start(zombie: Mapping[str, Any]) -> bool:
    """Whether `ZOMBIE`, as Prefect's API has it, sees a run that never had a heartbeat."""
    return WATCHED_FROM.issubset(zombie["trigger"]["after"])


def of_ours() -> dict[str, str]:
    """What a trigger's `match_related` must be to see events of runs with `TAG` alone."""
    return {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
