"""The flows under a real Prefect server: final states, artifacts, and an accounting that balances."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows import demo
from flows.infer import infer
from flows.ingest import ingest
from flows.prepare import prepare
from flows.reconcile import reconcile
from flows.train import train
from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome
from retroln.catalog.records import RunRecord
from retroln.catalog.states import ScanState
from retroln.errors import GateError, UnavailableError
from retroln.machine import cores
from retroln.settings import Settings
from retroln.steps import cases, leftovers, promote
from retroln.steps.leftovers import Swept
from retroln.steps.workspace import open_workspace
from retroln.tracking.registry import MlflowRegistry
from tasks import artifacts
from tasks.policy import using
from tasks.stages import ingest_cases
from tests.stand_in import POOR, register

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """What a person's browser would ask the server."""
    with get_client(sync_client=True) as opened:
        yield opened


def _artifacts(client: SyncPrefectClient, flow_run_id: Any) -> dict[str, str]:
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    found = client.read_artifacts(artifact_filter=of_run)
    return {str(artifact.key): str(artifact.data) for artifact in found}


def _run(flow: Any, settings: Settings) -> Any:
    with using(settings):
        return flow(return_state=True)


def _truncate(folder: Path) -> None:
    path = folder / "ct.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])


def _last_run(settings: Settings) -> RunRecord:
    return max(open_workspace(settings).catalog.runs(), key=lambda run: run.run_id)


def _stored(run: RunRecord) -> Accounting:
    counts = (run.n_in, run.n_done, run.n_skipped, run.n_quarantined, run.n_failed)
    return Accounting(*(int(count) for count in counts if count is not None))


def test_broken_case_ends_the_flow_quarantined_and_accounted_for(
    settings: Settings, deliver: Callable[..., Path], client: SyncPrefectClient
) -> None:
    deliver("GOOD", "P1")
    _truncate(deliver("BAD", "P2"))
    state = _run(ingest, settings)
    assert (state.type.value, state.name) == ("COMPLETED", "Quarantined")
    run = _last_run(settings)
    assert run.external_id == str(state.state_details.flow_run_id)
    assert run.flow == "ingest"
    assert _stored(run) == state.result() == Accounting(2, 1, 0, 1, 0)
    shown = _artifacts(client, state.state_details.flow_run_id)
    balance = "2 in = 1 done + 0 skipped + 1 quarantined + 0 failed"
    assert balance in shown["ingest-summary"]
    assert "BAD" in shown["ingest-held"]
    assert "truncated" in shown["ingest-held"]
    assert client.read_flow_run(state.state_details.flow_run_id).state_name == "Quarantined"


def test_rerun_over_unchanged_cases_is_all_skipped(settings: Settings, deliver: Callable[..., Path]) -> None:
    deliver("A", "P1")
    deliver("B", "P2")
    for flow in (ingest, prepare):
        first = _run(flow, settings)
        assert (first.name, first.result()) == ("Completed", Accounting(2, 2, 0, 0, 0))
    for flow in (ingest, prepare):
        again = _run(flow, settings)
        assert (again.name, again.result()) == ("Completed", Accounting(2, 0, 2, 0, 0))
        assert _stored(_last_run(settings)) == Accounting(2, 0, 2, 0, 0)


def test_shards_add_up(settings: Settings, deliver: Callable[..., Path]) -> None:
    for number in range(3):
        deliver(f"C{number}", f"P{number}")
    small = settings.model_copy(update={"shard_size": 2})
    _run(ingest, small)
    assert _run(prepare, small).result() == Accounting(3, 3, 0, 0, 0)


def test_ingest_starts_one_pool_and_tells_of_every_case(
    settings: Settings,
    deliver: Callable[..., Path],
    client: SyncPrefectClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(3):
        deliver(f"C{number}", f"P{number}")
    sizes, pool_of, seen = [], cases._pool, []
    monkeypatch.setattr(cases, "_pool", lambda processes: sizes.append(processes) or pool_of(processes))
    monkeypatch.setattr("tasks.policy.listeners", [seen.append])
    monkeypatch.setattr("tasks.artifacts.monotonic", lambda: 0.5)  # so little time passes
    shown, show = [], artifacts.update_progress_artifact
    monkeypatch.setattr(
        "tasks.artifacts.update_progress_artifact", lambda *update: shown.append(update[1]) or show(*update)
    )
    small = settings.model_copy(update={"shard_size": 1, "processes": 2})
    for outcome in ("done", "skipped"):
        seen.clear()
        state = _run(ingest, small)
        assert sorted((one.case_id, one.outcome.value) for one in seen) == [
            (f"C{n}", outcome) for n in range(3)
        ]
        assert float(_artifacts(client, state.state_details.flow_run_id)["ingest-progress"]) == 100.0
        assert sizes == [2]
        assert shown.pop() == 100.0
        assert shown == []


def test_ingest_that_is_tried_again_counts_what_it_did_before(
    settings: Settings, deliver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        deliver(f"C{number}", f"P{number}")
    told = []

    def interrupt(outcome: CaseOutcome) -> None:
        told.append(outcome)
        if len(told) == 2:
            raise RuntimeError("the task is interrupted")

    monkeypatch.setattr("tasks.stages.log_outcome", interrupt)
    monkeypatch.setattr("flows.ingest.ingest_cases", ingest_cases.with_options(retry_delay_seconds=0))
    assert _run(ingest, settings).result() == Accounting(3, 3, 0, 0, 0)
    assert len(told) == 5
    run = _last_run(settings)
    assert _stored(run) == Accounting(3, 3, 0, 0, 0)
    ledger = open_workspace(settings).catalog.outcomes_of(run.run_id)
    assert ledger == [CaseOutcome(f"C{number}", Outcome.DONE) for number in range(3)]


def test_failing_case_makes_the_flow_failed_and_is_named(
    settings: Settings, deliver: Callable[..., Path], client: SyncPrefectClient
) -> None:
    deliver("GOOD", "P1")
    deliver("LOST", "P2")
    _run(ingest, settings)
    workspace = open_workspace(settings)
    lost = workspace.catalog.current_scan("LOST")
    assert lost is not None
    workspace.store.delete(str(lost.ct_key))
    state = _run(prepare, settings)
    assert state.type.value == "FAILED"
    assert "1 failed: LOST" in str(state.message)
    run = _last_run(settings)
    assert (run.state, _stored(run)) == ("failed", Accounting(2, 1, 0, 0, 1))
    assert "LOST" in _artifacts(client, state.state_details.flow_run_id)["prepare-held"]
    failed = workspace.catalog.current_scan("LOST")
    assert failed is not None
    assert failed.state is ScanState.FAILED


def test_refused_training_fails_its_flow_and_does_not_stay_running(settings: Settings) -> None:
    state = _run(train, settings)
    assert state.type.value == "FAILED"
    assert "too few labelled patients" in str(state.message)
    assert _last_run(settings).state == "failed"


def test_reconcile_that_could_not_finish_a_withdrawal_is_failed_and_says_which(
    settings: Settings, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = "withdrawal 1: RefusedError: object lock until 2027"
    monkeypatch.setattr(leftovers, "sweep", lambda _: Swept(1, 2, failures=(failure,)))
    once = reconcile.with_options(retries=0)
    state = _run(once, settings)
    assert state.type.value == "FAILED"
    assert failure in state.message
    text = _artifacts(client, state.state_details.flow_run_id)["reconcile"]
    assert f"- not finished: {failure}" in text
    assert "2 objects that came of 1 withdrawn patients" in text
    monkeypatch.setattr(leftovers, "sweep", lambda _: Swept())
    assert _run(once, settings).is_completed()


def test_what_reconcile_put_right_is_shown_though_it_fails_afterwards(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: SyncPrefectClient
) -> None:
    version = register(settings, tmp_path / "bundle", stand_in="trained on phantoms")
    promote.promote(settings, version, reviewer="Dr A", comment="to test the flow")
    open_workspace(settings).registry.delete_alias("champion")

    def away(_: Settings) -> list[str]:
        raise UnavailableError("Prefect", expected="an answer", got="none", fix="wait")

    monkeypatch.setattr("flows.reconcile.sweep", away)
    state = _run(reconcile.with_options(retries=0), settings)
    assert state.type.value == "FAILED"
    text = _artifacts(client, state.state_details.flow_run_id)["reconcile"]
    assert text == f"- alias champion pointed to no version by hand; put back to version {version}"


def test_a_run_that_ends_while_reconcile_looks_at_it_keeps_its_count(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_workspace(settings).catalog
    ending, dead = (catalog.begin_run("ingest", {}, external_id=name) for name in ("ending", "dead"))

    def is_over(_: SyncPrefectClient, name: str) -> bool:
        if name == "ending":
            catalog.finish_run(ending, Accounting(1, done=1), "completed")
        return True

    monkeypatch.setattr("flows.sweep._is_over", is_over)
    state = _run(reconcile.with_options(retries=0), settings)
    assert (state.is_completed(), state.message) == (True, f"run {dead} of ingest had been cut short")
    assert {run.run_id: run.state for run in catalog.runs()} == {ending: "completed", dead: "failed"}


def test_inference_with_nothing_to_do_downloads_no_model(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: SyncPrefectClient
) -> None:
    version = register(settings, tmp_path / "bundle", stand_in="trained on phantoms")
    promote.promote(settings, version, reviewer="Dr A", comment="to test the flow")
    monkeypatch.setattr(MlflowRegistry, "fetch", lambda *_: pytest.fail("the bundle was fetched"))
    state = _run(infer, settings)
    assert state.is_completed()
    shown = _artifacts(client, state.state_details.flow_run_id)["infer-summary"]
    assert "The model is a stand-in, trained on phantoms." in shown
    assert _last_run(settings).parameters["version"] == version
    assert _stored(_last_run(settings)) == Accounting(0)


def test_the_demo_computes_with_its_share_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_keep_to_this_machine", lambda: None)
    monkeypatch.setattr(demo, "run_real", lambda _: int(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert demo.main(["--real", "anywhere"]) == cores()


def test_the_demo_ends_with_the_reason_why_its_model_is_refused(settings: Settings, tmp_path: Path) -> None:
    version = register(settings, tmp_path / "bundle", POOR)
    with pytest.raises(GateError, match=r"fails its gates.*sensitivity_ge10mm 0\.5"):
        demo._promote(settings, version)
    assert demo._promote(settings, register(settings, tmp_path / "better")) == Accounting(1, 1, 0, 0, 0)
