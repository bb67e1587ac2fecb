"""One backlog, several workers: shards run side by side, and on a Dask cluster instead when asked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from retroln.catalog.accounting import Outcome
from retroln.catalog.states import ScanState
from tests.stack.driver import Platform


def ingested(platform: Platform, prefix: str, count: int) -> list[str]:
    """Cases that wait for prepare; the event that would start it is held back meanwhile."""
    cases = [f"{prefix}{number}" for number in range(count)]
    for number, case in enumerate(cases):
        platform.deliver(case, f"{prefix}-PAT{number}")
    with platform.without_trigger("prepare what was ingested"):
        platform.run("ingest")
    assert platform.states(*cases) == {ScanState.INGESTED}
    return cases


def test_two_workers_share_a_backlog_and_nothing_is_done_twice(platform: Platform) -> None:
    cases = ingested(platform, "SPREAD", 24)
    run = platform.run("prepare", shard_size=12)
    assert run.state_name == "Completed", run.state
    assert platform.states(*cases) == {ScanState.PREPARED}
    record = platform.last_run("prepare")
    assert record.external_id == str(run.id)
    shards = platform.children_of(record.run_id)
    assert len(shards) == 2
    assert {len(shard.parameters["scan_ids"]) for shard in shards} == {12}
    spans = sorted((shard.start_time, shard.end_time) for shard in shards if shard.start_time)
    assert any(later < earlier_end for (_, earlier_end), (later, _) in pairwise(spans)), "none side by side"
    _each_done_once(platform, record.run_id, cases)


def test_the_same_flow_runs_on_a_dask_cluster(platform: Platform, dask_address: str) -> None:
    cases = ingested(platform, "DASK", 4)
    run = platform.run("prepare", shard_size=2, dask_address=dask_address)
    assert run.state_name == "Completed", run.state
    assert platform.states(*cases) == {ScanState.PREPARED}
    record = platform.last_run("prepare")
    assert platform.children_of(record.run_id) == []
    _each_done_once(platform, record.run_id, cases)


def _each_done_once(platform: Platform, run_id: int, cases: list[str]) -> None:
    done = {outcome.case_id for outcome in platform.catalog.outcomes_of(run_id, Outcome.DONE)}
    assert done == set(cases)
    for case in cases:
        events = platform.catalog.case_history(case).events
        assert [event.to_state for event in events] == ["ingested", "prepared"]
    assert not [claim for claim in platform.catalog.claims() if claim.case_id in cases]


@pytest.fixture
def dask_address(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A local Dask cluster of two processes, which read their settings as any worker does."""
    from distributed import LocalCluster

    for name, value in platform.stack.client_environment("operator").items():
        monkeypatch.setenv(name, value)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address
