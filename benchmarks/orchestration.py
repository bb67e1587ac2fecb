"""Prepare as a deployment on a real server beside the plain library loop, same cases, same process pool.

    python -m benchmarks.orchestration [--cases 1800] [--output results.json]

The plain side calls `retroln.steps.prepare.prepare` over half of its cases before the other side and over
half after it, so that a drift of the machine meets both. The other side starts the deployment `prepare` on
the stack's Prefect server, which places shards on the work pool; it counts from the request to the final
state, start of flow runs included. Both write to the same S3 and PostgreSQL. Starting a shard takes some
seconds (a process, a pool, connections), so its work is sized to some minutes, as a user would.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from benchmarks.on_a_stack import deliver, now, platform, prepared_at, report, run_deployment
from retroln.settings import Settings

_SPACING_MM = (1.0, 1.0, 1.5)
_PROCESSES = 2


def measure(cases: int, shard_size: int) -> dict[str, Any]:
    """Seconds of both sides and their ratio."""
    plain_s = platform_s = 0.0
    with platform(shard_workers=1, processes=_PROCESSES) as (stack, settings):
        for side, count in (("FIRST", cases // 2), ("FLOW", cases), ("LAST", cases - cases // 2)):
            names = [f"{side}-{number:04}" for number in range(count)]
            deliver(settings, stack, names, _SPACING_MM)
            begun = now()
            if side == "FLOW":
                run_deployment("prepare", shard_size=shard_size)
                platform_s = now() - begun
            else:
                _plain(settings)
                plain_s += now() - begun
            prepared_at(settings, names)
    return {
        "cases": cases,
        "processes": _PROCESSES,
        "shard_size": shard_size,
        "plain_s": round(plain_s, 1),
        "platform_s": round(platform_s, 1),
        "ratio": round(platform_s / plain_s, 3),
    }


def _plain(settings: Settings) -> None:
    from retroln.steps import prepare
    from retroln.steps.runs import Run

    run, backlog = Run.begin(settings, "prepare", {}), prepare.backlog(settings)
    owner = f"{socket.gethostname()}:{os.getpid()}"
    prepare.prepare(settings, backlog.left, run_id=run.run_id, owner=owner)
    accounting, _ = run.settle(backlog)
    if accounting.failed:
        raise RuntimeError(f"{accounting.failed} cases failed")


if __name__ == "__main__":
    report(
        __doc__,
        measure,
        cases=(1800, "per side; the plain side should take 5 minutes or more"),
        shard_size=(900, "cases per shard; it should take some minutes"),
    )
