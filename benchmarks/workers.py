"""Two workers with one process each beside one such worker, over shards of a minute or more.

    python -m benchmarks.workers [--cases 360] [--output results.json]

One stack runs both: the same cases once with both shard workers and once with one of them stopped. Throughput
is cases per second between the first and the last case that became prepared, so that the start of flow
runs is left out.
"""

from __future__ import annotations

from typing import Any

from benchmarks.on_a_stack import deliver, platform, prepared_at, report, run_deployment
from infra.stack.supervisor import Supervisor

_SPACING_MM = (1.0, 1.0, 1.5)


def measure(cases: int) -> dict[str, Any]:
    """Throughput with one and with two workers, and their ratio."""
    with platform(shard_workers=2, processes=1) as (stack, settings):
        supervisor, rates = Supervisor(stack.home), {}
        for workers, prefix in ((1, "ONE"), (2, "TWO")):
            if workers == 1:
                supervisor.stop("worker-cpu-shards-1")
            else:
                supervisor.start("worker-cpu-shards-1")
            names = [f"{prefix}{number:03}" for number in range(cases)]
            deliver(settings, stack, names, _SPACING_MM)
            run_deployment("prepare", shard_size=cases // 2)
            moments = prepared_at(settings, names)
            # with two workers the first case of each shard began together: two cases start the clock
            rates[workers] = (cases - workers) / (moments[-1] - moments[workers - 1])
        return {
            "cases": cases,
            "shard_s_one_worker": round(cases / 2 / rates[1], 1),
            "cases_per_s_one_worker": round(rates[1], 3),
            "cases_per_s_two_workers": round(rates[2], 3),
            "ratio": round(rates[2] / rates[1], 2),
        }


if __name__ == "__main__":
    report(
        __doc__,
        measure,
        cases=(360, "per side; a shard is half of them and should take a minute with one worker"),
    )
