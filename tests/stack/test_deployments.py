"""What the server was told: deployments a person understands, queues, schedules, automations, telling."""

from __future__ import annotations

from typing import Any

import pytest

from infra.stack.throwaway import command
from tests.stack.driver import STACK_OPTIONS, Platform, wait
from tests.stack.sink import Sink

PLACES = {
    "ingest": ("cpu-pool", "flows"),
    "prepare": ("cpu-pool", "flows"),
    "prepare-shard": ("cpu-pool", "shards"),
    "train": ("cpu-pool", "flows"),
    "train-fold": ("gpu-pool", "training"),
    "train-score": ("gpu-pool", "training"),
    "promote": ("cpu-pool", "flows"),
    "infer": ("cpu-pool", "flows"),
    "infer-shard": ("gpu-pool", "inference"),
    "reconcile": ("cpu-pool", "flows"),
}
CRONS = {
    "ingest": "0 1 * * *",
    "prepare": "0 3 * * *",
    "train": "0 6 * * 6",
    "infer": "0 4 * * *",
    "reconcile": "*/5 * * * *",
}
ONE_AT_A_TIME = {"ingest", "prepare", "train", "infer", "reconcile"}


def _deployments(platform: Platform) -> dict[str, Any]:
    return {found.name: found for found in platform.prefect.read_deployments()}


def test_every_deployment_is_placed_scheduled_and_limited(platform: Platform) -> None:
    found = _deployments(platform)
    assert {name: (d.work_pool_name, d.work_queue_name) for name, d in found.items()} == PLACES
    crons = {name: d.schedules[0].schedule.cron for name, d in found.items() if d.schedules}
    assert crons == CRONS
    limited = {name for name, d in found.items() if d.global_concurrency_limit}
    assert limited == ONE_AT_A_TIME
    assert {d.global_concurrency_limit.limit for d in found.values() if d.global_concurrency_limit} == {1}


def test_a_person_reads_what_a_deployment_and_its_parameters_are(platform: Platform) -> None:
    found = _deployments(platform)
    assert found
    for name, deployment in found.items():
        assert deployment.description, name
        assert deployment.description.endswith("."), name
        assert "retroln" in deployment.tags, name
        for parameter, schema in deployment.parameter_openapi_schema["properties"].items():
            assert schema.get("description"), f"{name}: {parameter}"
            assert {"type", "anyOf", "allOf", "$ref"} & set(schema), f"{name}: {parameter} has no type"


def test_bad_parameters_are_refused_with_the_reason(platform: Platform) -> None:
    with pytest.raises(Exception, match="shard_size"):
        platform.start("prepare", shard_size="many")


def test_a_failing_run_is_told_about(platform: Platform, sink: Sink) -> None:
    known = len(sink.bodies)
    run = platform.run("train", spec={"n_folds": 20, "test_fraction": 0.9, "profile": "demo"})
    assert run.state_name == "Failed"
    told = wait(lambda: [b for b in sink.bodies[known:] if "is Failed" in b], 60, "nobody is told")
    assert "train" in told[0]
    assert "too few labelled patients" in told[0]


def test_starting_what_runs_changes_nothing(platform: Platform) -> None:
    def seen() -> tuple[dict[str, int], set[str], set[str], str]:
        programs = {name: int(info["pid"]) for name, info in platform.supervisor.states().items()}
        deployments = {str(found.id) for found in platform.prefect.read_deployments()}
        automations = {str(found["name"]) for found in platform.automations()}
        return programs, deployments, automations, (platform.stack.home / "secrets.json").read_text()

    before = seen()
    command(platform.stack, "up", *STACK_OPTIONS)
    assert seen() == before
