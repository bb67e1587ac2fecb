"""The way of the data over real servers: deliver, ingest, prepare by event, train, review, infer."""

from __future__ import annotations

import re
from functools import partial
from uuid import UUID

import pytest

from retroln.catalog.states import ScanState
from retroln.settings import TrainSpec
from retroln.tracking.connection import Connection
from tests.stack.driver import Platform, wait

CASES = [f"CASE{number}" for number in range(8)]
SPEC = TrainSpec(
    profile="demo",
    folds=(0, 1),
    epochs=2,
    iterations=2,
    validation_iterations=1,
    n_folds=2,
    test_fraction=0.3,
    device="cpu",
    stand_in="trained for four steps on phantoms",
)


def _deliver_all(platform: Platform) -> None:
    for number, case in enumerate(CASES):
        platform.deliver(case, f"PAT{number}")


@pytest.fixture
def prepared(platform: Platform) -> Platform:
    """Eight phantoms ingested; prepare was started by the event, not by this test."""
    if platform.states(*CASES) != {ScanState.PREPARED}:
        _deliver_all(platform)
        platform.run("ingest")
        wait(lambda: platform.states(*CASES) == {ScanState.PREPARED}, 240, "the cases are not prepared")
    return platform


def test_ingest_accounts_for_a_broken_case_and_prepare_follows_by_event(platform: Platform) -> None:
    platform.deliver("BROKEN", "PAT-B", broken=True)
    _deliver_all(platform)
    run = platform.run("ingest")
    assert (run.state_name, run.name) == ("Quarantined", "ingest: 8 done, 0 skipped, 1 quarantined")
    shown = platform.artifacts(run.id)
    assert "9 in = 8 done + 0 skipped + 1 quarantined + 0 failed" in shown["ingest-summary"]
    assert "BROKEN" in shown["ingest-held"]
    assert "truncated" in shown["ingest-held"]
    assert shown["ingest-progress"] == "100.0"
    wait(lambda: platform.states(*CASES) == {ScanState.PREPARED}, 240, "the event does not start prepare")
    done = platform.ended(platform.runs_of("prepare")[0].id)
    assert done.state_name == "Completed"
    assert done.name == "prepare: 8 done, 0 skipped, 0 quarantined"
    assert done.auto_scheduled is False
    assert done.created_by is not None
    assert done.created_by.type == "AUTOMATION"
    assert platform.events("retroln.scans.ingested")[0].payload == {"count": 8}
    held = platform.events("retroln.cases.quarantined")[0].payload
    assert (held["stage"], held["reasons"]) == ("ingest", {"truncated": 1})
    again = platform.run("ingest")
    assert (
        "9 in = 0 done + 8 skipped + 1 quarantined + 0 failed"
        in platform.artifacts(again.id)["ingest-summary"]
    )


def test_training_places_folds_on_the_gpu_pool_in_one_mlflow_run(prepared: Platform) -> None:
    platform = prepared
    run = platform.run("train", spec=SPEC.model_dump(mode="json"), timeout_s=400)
    assert run.state_name == "Completed", run.state
    folds = [fold for fold in platform.runs_of("train-fold") if fold.parent_task_run_id]
    assert {fold.work_pool_name for fold in folds} == {"gpu-pool"}
    assert {fold.parameters["fold"] for fold in folds} == {0, 1}
    assert len({fold.parameters["ticket"]["mlflow_run_id"] for fold in folds}) == 1
    registry = platform.workspace.registry
    version = registry.get_alias("candidate")
    assert version is not None
    assert run.name == f"train: version {version} is the new candidate"
    mlflow_run = registry.version(version).run_id
    client = Connection.of(platform.settings).client
    for fold in (0, 1):
        steps = [m.step for m in client.get_metric_history(str(mlflow_run), f"fold{fold}.train_loss")]
        assert sorted(steps) == [0, 1]
    assert f"/runs/{mlflow_run}" in platform.artifacts(run.id)["mlflow-run"]
    again = platform.run("train", spec=SPEC.model_dump(mode="json"))
    assert again.name == f"train: version {version} is unchanged"


def test_promotion_by_form_starts_inference_once(prepared: Platform) -> None:
    platform = prepared
    registry = platform.workspace.registry
    version = registry.get_alias("candidate")
    assert version is not None, "training comes first"
    flow_run = platform.start("promote")
    waiting = platform.in_state(flow_run, "Suspended")
    assert waiting.name == f"promote: version {version} waits for a reviewer"
    assert "sensitivity_ge10mm" in platform.artifacts(flow_run)["promote-gates"]
    assert registry.get_alias("champion") is None
    _answer(platform, flow_run, approve=True, reviewer="Dr A", comment="figures seen")
    assert platform.ended(flow_run).name == f"promote: version {version} is champion"
    assert registry.get_alias("champion") == version
    row = platform.catalog.audits(platform.settings.model_name)[-1]
    assert (row.action, row.version, row.reviewer, row.comment) == (
        "promote",
        version,
        "Dr A",
        "figures seen",
    )
    run = wait(lambda: next(iter(platform.runs_of("infer")), None), 120, "reconcile does not start infer")
    done = platform.ended(run.id)
    assert re.fullmatch(r"infer: \d+ done, \d+ skipped, 0 quarantined", done.name)
    platform.run("reconcile")
    platform.run("reconcile")
    assert len(platform.runs_of("infer")) == 1
    shown = platform.artifacts(run.id)
    assert "page.html" in shown["infer-results"]
    for event in ("retroln.dataset.published", "retroln.model.registered", "retroln.model.promoted"):
        wait(partial(platform.events, event), 30, f"{event} is not on the server")
    assert platform.events("retroln.model.promoted")[0].payload["version"] == version


def _answer(platform: Platform, flow_run: UUID, **answer: object) -> None:
    result = platform.prefect.resume_flow_run(flow_run, run_input=answer)
    assert result.status.value == "ACCEPT", result
