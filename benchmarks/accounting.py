"""Accounting of 10,000 cases on a real Prefect server and PostgreSQL: states set without image work.

    python -m benchmarks.accounting [--cases 10000] [--output results.json]

A flow gives out shards as prepare does; each case is claimed, recorded as prepared, noted in the run's
ledger and released, all of it real, but no image is read. Then the flow runs again over the unchanged
cohort. Time per case is shown per tenth of the cohort, memory is this process's, growth that of the two
databases. Last, the flow ingest runs over a source of as many objects, all of them known: seconds, and
milliseconds of CPU per case of the process that runs the flow and of those that it starts.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from prefect import flow, task

from benchmarks.on_a_stack import now, platform, report
from infra.stack.plan import Stack
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.records import CropDraft, LandmarksDraft, RoiDraft, ScanRecord
from retroln.catalog.states import ScanState
from retroln.settings import RoiSpec, Settings
from retroln.steps import ingest, prepare
from retroln.steps.arrivals import Arrival, Listed
from retroln.steps.claimed import Job, run_claimed
from retroln.steps.identity import Policy
from retroln.steps.runs import Run
from retroln.steps.workspace import open_workspace
from tests.stand_in import scan_without_image

_SHARD = 100
_moments: list[float] = []


def measure(cases: int) -> dict[str, Any]:
    """Milliseconds per case along the cohort, seconds of an unchanged pass, megabytes of growth."""
    with platform(shard_workers=1, processes=1) as (stack, settings):
        here = settings.model_copy(update={"fan_out": "here"})
        _fill(here, 0, cases // 10)
        _pass(here)
        small_idle_s = _pass(here)
        _fill(here, cases // 10, cases)
        before, memory = _sizes(stack), _memory_mb()
        _moments.clear()
        _pass(here)
        per_tenth = [
            round(1000 * (_moments[end - 1] - _moments[start]) / (end - start - 1), 2)
            for start, end in _tenths(len(_moments))
        ]
        after, memory_after = _sizes(stack), _memory_mb()
        return {
            "cases": cases,
            "ms_per_case_by_tenth": per_tenth,
            "last_tenth_to_first": round(per_tenth[-1] / per_tenth[0], 2),
            "unchanged_pass_s": {str(cases // 10): small_idle_s, str(cases): _pass(here)},
            "unchanged_ingest": _unchanged_ingest(
                here.model_copy(update={"processes": 2}), stack, (cases // 10, cases)
            ),
            "memory_mb": {"before": memory, "after": memory_after},
            "database_kb_per_case": {
                name: round((after[name] - before[name]) / 1024 / (0.9 * cases), 2) for name in before
            },
        }


def _fill(settings: Settings, first: int, stop: int) -> None:
    catalog = open_workspace(settings).catalog
    run = Run.begin(settings, "fill", {})
    for number in range(first, stop):
        catalog.add_scan(scan_without_image(f"C{number:05}"), run.run_id)
    run.finish([])


def _pass(settings: Settings) -> float:
    """One run of the flow; its seconds."""
    from tasks.policy import using

    begun = now()
    with using(settings):
        state = accounting(return_state=True)
    if not state.is_completed():
        raise RuntimeError(str(state))
    return round(now() - begun, 2)


@flow
def accounting() -> Any:
    """As flows.prepare.prepare, with another task."""
    from flows.accounting import begin, settle
    from flows.fan_out import fan_out
    from tasks.policy import settings_in_use

    with begin(settings_in_use(), "prepare", {}) as run:
        backlog = prepare.backlog(run.settings)
        fan_out(run, backlog, task=mark_shard, stage="prepare", size=_SHARD)
        return settle(run, "prepare", backlog)


@task
def mark_shard(settings: Settings, scan_ids: tuple[int, ...], run_id: int) -> int:
    """Claim, record, note and release each scan."""
    job = Job(settings, run_id, "benchmark", partial(_record, settings, run_id), _waits)
    return len(run_claimed(job, scan_ids, on_outcome=lambda _: _moments.append(now())))


def _unchanged_ingest(settings: Settings, stack: Stack, sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Passes of ingest over ever more cases that the catalog knows, the second of each size."""
    figures, known = {}, 0
    for size in sizes:
        _deliver_known(settings, stack, range(known, size))
        known = size
        _ingest_pass(settings)
        seconds, cpu_s = _ingest_pass(settings)
        figures[str(size)] = {"s": round(seconds, 2), "cpu_ms_per_case": round(1000 * cpu_s / size, 2)}
    return figures


def _deliver_known(settings: Settings, stack: Stack, numbers: Iterable[int]) -> None:
    """Objects of a few bytes, each recorded in the catalog as the CT of a case that was taken in."""
    names = {f"I{number:05}" for number in numbers}
    with closing(stack.s3("delivery").client()) as client, ThreadPoolExecutor(8) as pool:
        keys = [f"{name}-patient/{name}/ct.nii.gz" for name in names]
        for _ in pool.map(lambda key: client.put_object(Bucket="source", Key=key, Body=key.encode()), keys):
            pass
    workspace, policy = open_workspace(settings), Policy.of(settings)
    entries = [entry for entry in ingest.list_entries(settings) if entry.case_id in names]
    source, run = Listed.of(workspace.source, entries), Run.begin(settings, "fill", {})
    for entry in entries:
        fingerprint = Arrival.of(entry, None, source, (), policy).fingerprint
        scan = replace(scan_without_image(entry.case_id), source_fingerprint=fingerprint)
        workspace.catalog.add_scan(scan, run.run_id)
    run.finish([])


def _ingest_pass(settings: Settings) -> tuple[float, float]:
    """One run of the flow ingest; its seconds by the clock and of CPU."""
    from flows.ingest import ingest as flow_ingest
    from tasks.policy import using

    begun, used = now(), _cpu_s()
    with using(settings):
        state = flow_ingest(return_state=True)
    accounting = state.result()
    if accounting.skipped != accounting.n_in:
        raise RuntimeError(str(accounting))
    return now() - begun, _cpu_s() - used


def _cpu_s() -> float:
    """Seconds of CPU of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _waits(scan: ScanRecord) -> bool:
    return scan.state is ScanState.INGESTED


def _record(settings: Settings, run_id: int, scan: ScanRecord) -> CaseOutcome:
    spec = {"spec": RoiSpec().model_dump()}
    open_workspace(settings).catalog.record_prepared(
        scan.scan_id,
        LandmarksDraft(
            source="none",
            label_ids="totalseg-v2",
            rung="l2",
            anchored=True,
            truncated=[],
            findings=[],
            levels={},
        ),
        RoiDraft(start=(0, 0, 0), stop=(1, 1, 1), clamped_sides=[], document=spec),
        CropDraft(ct_key=scan.case_id, ct_sha256=scan.case_id, roi_key=scan.case_id),
        run_id,
    )
    return CaseOutcome(scan.case_id, Outcome.DONE)


def _tenths(count: int) -> list[tuple[int, int]]:
    size = count // 10
    return [(place * size, (place + 1) * size) for place in range(10)]


def _memory_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _sizes(stack: Stack) -> dict[str, int]:
    """Bytes of the catalog's and of Prefect's database."""
    import psycopg

    found = {}
    for name in ("retroln", "prefect"):
        with psycopg.connect(
            host="127.0.0.1",
            port=stack.postgres_port,
            user=name,
            password=stack.secrets["postgres"][name],
            dbname=name,
        ) as connection:
            row = connection.execute("SELECT pg_database_size(%s)", (name,)).fetchone()
            found[name] = int(row[0]) if row else 0
    return found


if __name__ == "__main__":
    report(__doc__, measure, cases=(10_000, "of the cohort"))
