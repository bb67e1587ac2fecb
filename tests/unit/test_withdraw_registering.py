"""A patient withdraws while a training writes to MLflow: no model without a mark, no name that stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from retroln.catalog.records import DatasetRecord
from retroln.cli import cli
from retroln.errors import ConflictError, IntegrityError, UnavailableError
from retroln.settings import Settings, TrainSpec
from retroln.steps import holdings, leftovers, promote, training, withdraw
from retroln.steps.fold_store import FoldStore, Sealed, Ticket, spec_sha256
from retroln.steps.leftovers import Swept
from retroln.steps.reconcile import reconcile
from retroln.steps.workspace import Workspace, open_workspace
from retroln.tracking import runs, traces
from retroln.tracking.runs import TrainingRun
from tests import stand_in

PATIENT = "C0-patient"
WORDS = {"reason": "letter", "by": "Dr A"}
SPEC = TrainSpec(profile="demo")
CASES = [{"case_id": f"C{n}", "patient_id": f"C{n}-patient", "dice": 0.7} for n in range(6)]


class Killed(BaseException):
    """What a process that is killed does not come back from."""


@dataclass(frozen=True)
class Scored:
    """A training that was scored; what is left is to register it."""

    settings: Settings
    record: DatasetRecord
    ticket: Ticket

    @property
    def workspace(self) -> Workspace:
        return open_workspace(self.settings)

    def withdraw(self, *_: Any) -> None:
        withdraw.withdraw(self.settings, PATIENT, **WORDS)

    def begin_withdrawal(self) -> None:
        """Of which the rest was done before it could see what comes now."""
        self.workspace.catalog.begin_withdrawal(PATIENT, **WORDS)
        self.workspace.catalog.empty_withdrawn(PATIENT)

    def mark(self, version: int) -> str | None:
        return self.workspace.registry.tags(version).get(withdraw.VERSION_TAG)

    def run(self) -> traces.FoundRun:
        (run,) = traces.runs_tagged(self.settings, promote.DATASET_TAG, self.record.version)
        return run

    def names(self, patient_id: str = PATIENT) -> list[str]:
        found = traces.traces(self.settings, self.run().run_id, patient_id)
        return sorted(one.path for one in found)

    def noted(self, kind: str) -> list[str]:
        items = self.workspace.catalog.withdrawn_items(PATIENT)
        return [item.name for item in items if item.kind == kind]


@pytest.fixture
def scored(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Scored:
    """Six test patients with scores; the bundle is a text file."""
    record = stand_in._dataset(settings)
    tags = {promote.DATASET_TAG: record.version, promote.SPEC_TAG: spec_sha256(SPEC)}
    run = runs.start(settings, name="t", params={}, tags=tags)
    run.close()

    def fetch(_: FoldStore, __: str, folder: Path) -> Sealed:
        folder.mkdir(parents=True)
        (folder / "weights.txt").write_text("weights")
        (folder / "scores.json").write_text(json.dumps({"cases": CASES}))
        return Sealed({}, {"bundle_sha256": "0"})

    def log_scores(run: TrainingRun, content: dict[str, Any], _: Any) -> None:
        run.log_json(content, "test/scores.json")

    monkeypatch.setattr(FoldStore, "fetch", fetch)
    monkeypatch.setattr(training.bundle, "load", lambda *_: None)
    monkeypatch.setattr(training.evaluate, "from_json", lambda content: content)
    monkeypatch.setattr(training.folds, "epochs_of", lambda *_: [])
    monkeypatch.setattr(training, "_log_scores", log_scores)
    monkeypatch.setattr(promote, "figures", lambda _: stand_in.GOOD)
    ticket = Ticket(dataset_version=record.version, spec=SPEC, mlflow_run_id=run.run_id)
    return Scored(settings, record, ticket)


def withdrawn_first(scored: Scored, function: Callable[..., Any]) -> Callable[..., Any]:
    def late(*arguments: Any) -> Any:
        scored.begin_withdrawal()
        return function(*arguments)

    return late


def test_nothing_is_registered_of_a_patient_who_withdrew_since_the_start(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.bundle, "load", scored.withdraw)
    with pytest.raises(ConflictError, match="tombstoned"):
        training.register(scored.settings, scored.ticket)
    assert scored.workspace.registry.versions() == []
    assert (scored.names(), scored.names("C1-patient")) == ([], ["test/scores.json"])
    assert scored.noted("artifact") == [f"{scored.ticket.mlflow_run_id}/test/scores.json"]
    training.abandon(scored.settings, scored.ticket, "its patient withdrew")
    assert leftovers.sweep(scored.settings) == Swept()


def test_what_is_registered_at_the_same_moment_is_marked(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promote, "register", withdrawn_first(scored, promote.register))
    version = training.register(scored.settings, scored.ticket).version
    assert (scored.mark(version), scored.names()) == ("1", [])
    assert scored.noted("version") == [str(version)]
    assert scored.run().tags[withdraw.VERSION_TAG] == "1"


def register_and_die(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> int:
    """The candidate's number; nobody has marked it."""

    def dies(_: Settings, dataset: str) -> int:
        if scored.workspace.catalog.withdrawn_from(dataset):
            raise Killed
        return 0

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(promote, "register", withdrawn_first(scored, promote.register))
        patch.setattr(withdraw, "put_mlflow_right", dies)
        training.register(scored.settings, scored.ticket)
    (version,) = scored.workspace.registry.versions()
    assert (scored.mark(version.version), scored.names()) == (None, ["test/scores.json"])
    return version.version


def test_what_died_after_registering_is_put_right_by_the_sweep(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register_and_die(scored, monkeypatch)
    found = leftovers.sweep(scored.settings)
    assert (found.in_mlflow, found.failures) == (2, ())
    assert "2 model versions and artifacts in MLflow" in " ".join(found.remarks())
    assert (scored.mark(version), scored.names()) == ("1", [])
    monkeypatch.setattr(traces, "traces", lambda *_: pytest.fail("looked through again"))
    assert leftovers.sweep(scored.settings).in_mlflow == 0


def test_a_second_withdrawal_is_looked_for_as_well(scored: Scored) -> None:
    version = training.register(scored.settings, scored.ticket).version
    for number in range(2):
        scored.workspace.catalog.begin_withdrawal(f"C{number}-patient", **WORDS)
        leftovers.sweep(scored.settings)
        assert (scored.mark(version), scored.names(f"C{number}-patient")) == (str(number + 1), [])


def test_a_run_in_the_trash_is_redacted_as_well(scored: Scored) -> None:
    training.register(scored.settings, scored.ticket)
    connection = scored.workspace.registry.connection
    connection.client.delete_run(scored.ticket.mlflow_run_id)
    scored.withdraw()
    assert scored.names() == []
    assert leftovers.sweep(scored.settings) == Swept()


def test_a_withdrawal_that_was_cut_off_before_mlflow_is_finished_by_the_sweep(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = training.register(scored.settings, scored.ticket).version

    def away(*_: object) -> None:
        raise UnavailableError("MLflow went away")

    with monkeypatch.context() as patch, pytest.raises(UnavailableError):
        patch.setattr(withdraw, "put_mlflow_right", away)
        scored.withdraw()
    assert scored.names() == ["test/scores.json"]
    leftovers.sweep(scored.settings)
    assert (scored.mark(version), scored.names()) == ("1", [])


def test_a_training_that_begins_meanwhile_fails_and_names_nobody(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[m.case_id, m.patient_id, m.role, m.fold, "a", None] for m in scored.record.members]
    scored.workspace.store.put_bytes(json.dumps({"members": rows}).encode(), scored.record.manifest_key)
    monkeypatch.setattr(training.train, "publish_dataset", lambda *_: scored.record)
    log_dataset = TrainingRun.log_dataset

    def late(run: TrainingRun, *arguments: Any, **named: Any) -> None:
        scored.begin_withdrawal()
        log_dataset(run, *arguments, **named)
        assert scored.names() == ["dataset/manifest.json"]

    monkeypatch.setattr(TrainingRun, "log_dataset", late)
    with pytest.raises(ConflictError, match="tombstoned"):
        training.begin(scored.settings, SPEC)
    assert (scored.names(), scored.names("C1-patient")) == ([], ["dataset/manifest.json"])
    assert not scored.run().under_way


def test_an_artifact_that_cannot_be_read_is_named_and_stops_nothing_else(
    scored: Scored, tmp_path: Path
) -> None:
    version = training.register(scored.settings, scored.ticket).version
    scored.workspace.store.put_bytes(b"CT", "scans/C0/C0/ct.nii.gz")
    run = runs.start(scored.settings, name="u", params={}, tags={promote.DATASET_TAG: scored.record.version})
    (tmp_path / "notes.json").write_text("no JSON")
    run.log_file(tmp_path / "notes.json")
    run.end("FINISHED")
    assert f"run {run.run_id}: notes.json" in " ".join(holdings.survey(scored.settings, PATIENT).remarks)
    with pytest.raises(IntegrityError, match=rf"run {run.run_id}: notes\.json.*fix: "):
        scored.withdraw()
    assert list(scored.workspace.store.list("scans/C0/")) == []
    assert scored.mark(version) == "1"
    assert traces.traces(scored.settings, scored.ticket.mlflow_run_id, PATIENT) == []
    (failure,) = leftovers.sweep(scored.settings).failures
    assert "dataset version dddd" in failure and "notes.json" in failure


def test_an_approval_of_a_marked_version_is_decided_with_a_word(scored: Scored) -> None:
    version = training.register(scored.settings, scored.ticket).version
    scored.withdraw()
    stand_in.approve(scored.settings, version)
    found = reconcile(scored.settings)
    assert found.decision is not None
    assert found.remarks == (f"version {version} knows 1 patients who took back consent since",)


def test_whoever_promotes_a_marked_version_is_told(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    version = training.register(scored.settings, scored.ticket).version
    assert promote.caution(scored.settings, version) is None
    scored.withdraw()
    monkeypatch.setattr("retroln.cli.review.Settings", lambda: scored.settings)
    words = ["promote", str(version), "--reviewer", "Dr B", "--comment", "all pages seen"]
    said = CliRunner().invoke(cli, words, catch_exceptions=False).output
    assert f"note: version {version} knows 1 patients who took back consent since" in said
    assert f"version {version} is champion" in said
