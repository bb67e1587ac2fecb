"""Runs and registry against an embedded MLflow (SQLite) and a real `mlflow server`."""

import itertools
import json
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from retroln.errors import ConflictError, IntegrityError, NotFoundError, RefusedError, UserError
from retroln.settings import Settings
from retroln.tracking import journal, traces
from retroln.tracking import registry as registry_module
from retroln.tracking.connection import Connection, translated
from retroln.tracking.registry import MlflowRegistry, tree_sha256
from retroln.tracking.rights import rights
from retroln.tracking.runs import (
    attach,
    attached,
    fail,
    find_unfinished,
    is_finished,
    replay_waiting,
    start,
    training_run,
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """`mlflow server` on SQLite with proxied artifacts, as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = _free_port(), folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination": f"{self.folder}/served",
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        command = [sys.executable, "-m", "mlflow", "server", *[x for o in options.items() for x in o]]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        assert self.process
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = MlflowServer(tmp_path_factory.mktemp("mlflow-server"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow-embedded")


@pytest.fixture(params=["sqlite", "server"])
def settings(request, tmp_path, embedded):
    uri = f"sqlite:///{embedded}/new/mlflow.db"
    if request.param == "server":
        uri = request.getfixturevalue("server").uri
    return Settings(
        mlflow_uri=uri,
        mlflow_artifacts=str(embedded / "artifacts"),
        work_dir=tmp_path / "work",
        model_name=f"m-{tmp_path.name}",
    )


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "some bundle"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "contract.json").write_text('{"hu": [-1000, 400]}')
    (folder / "fold_0/checkpoint_final.pth").write_bytes(bytes(range(256)) * 50)
    return folder


@pytest.fixture
def run(settings):
    return start(settings, name="test", params={"epochs": 3, "roi": {"behind_mm": 30.0}})


def _history(run, name):
    return [(m.step, m.value) for m in run.connection.client.get_metric_history(run.run_id, name)]


def _artifacts(run, folder=None):
    return {a.path for a in run.connection.client.list_artifacts(run.run_id, folder)}


def test_a_run_holds_params_epochs_dataset_and_figures(settings):
    with training_run(settings, name="demo", params={"fold": 0, "hu": {"low": -1000.0}}) as run:
        for epoch in range(3):
            run.log_epoch(
                {"epoch": epoch, "train_loss": 1.0 - epoch / 10, "val_loss": float("nan"), "lr": 0.01}
            )
        run.log_metrics({"dice_mean": 0.9, "missing": None, "sensitivity >= 10 mm": 1})
        run.log_dataset({"cases": ["a", "b"]}, name="Dataset600_RetroLN", version="ab" * 32)
        run.log_figures({"training_curve": b"\x89PNG"})
    stored = run.connection.client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"fold": "0", "hu.low": "-1000.0"}
    assert _history(run, "train_loss") == [(0, 1.0), (1, 0.9), (2, 0.8)]
    assert stored.data.metrics.keys() == {"train_loss", "lr", "dice_mean", "sensitivity __ 10 mm"}
    assert _artifacts(run, "figures") == {"figures/training_curve.png"}
    assert _artifacts(run, "dataset") == {"dataset/manifest.json"}
    assert stored.inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:36]
    assert not run.journal.exists()


def test_a_failed_training_is_a_failed_run_that_names_the_error(settings):
    with pytest.raises(ZeroDivisionError), training_run(settings, name="bad", params={}) as run:
        raise ZeroDivisionError("no cases")
    stored = run.connection.client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["error"]) == ("FAILED", "ZeroDivisionError: no cases")


def test_an_interrupted_run_is_continued_under_its_id(settings, run):
    run.log_epoch({"epoch": 0, "train_loss": 1.0})
    run.end("KILLED")
    with training_run(settings, name="ignored", params={}, run_id=run.run_id) as again:
        again.log_epoch({"epoch": 1, "train_loss": 0.5})
    assert _history(run, "train_loss") == [(0, 1.0), (1, 0.5)]


def test_a_bundle_comes_back_as_it_was_registered(settings, run, bundle, tmp_path):
    registry = MlflowRegistry.of(settings)
    version = registry.register(bundle, run.run_id, {"dataset": "v1"})
    assert version == 1
    assert registry.tags(version) == {"dataset": "v1", "bundle_sha256": tree_sha256(bundle)}
    fetched = registry.fetch(version, tmp_path / "cache")
    assert tree_sha256(fetched) == tree_sha256(bundle)
    assert (fetched / "fold_0/checkpoint_final.pth").read_bytes() == bytes(range(256)) * 50
    assert registry.fetch(version, tmp_path / "cache") == fetched
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [fetched.name]


def test_registering_the_same_bundle_again_adds_no_version(settings, run, bundle):
    registry = MlflowRegistry.of(settings)
    assert registry.register(bundle, run.run_id, {}) == registry.register(bundle, run.run_id, {}) == 1
    (bundle / "contract.json").write_text("{}")
    assert registry.register(bundle, run.run_id, {}) == 2
    assert [v.version for v in registry.versions()] == [2, 1]


def test_the_stored_model_is_an_mlflow_pyfunc_with_signature_and_code(settings, run, bundle, tmp_path):
    import mlflow
    from mlflow.artifacts import download_artifacts

    registry = MlflowRegistry.of(settings)
    registry.register(bundle, run.run_id, {})
    location = run.connection.client.get_model_version_download_uri(registry.name, "1")
    local = Path(
        download_artifacts(artifact_uri=location, dst_path=str(tmp_path), tracking_uri=settings.mlflow_uri)
    )
    from mlflow.models import Model

    pyfunc_model = Path(registry_module.__file__).with_name("pyfunc_model.py")
    stored = Model.load(str(local))
    assert stored.signature.inputs.input_names() == ["ct", "output"]
    assert stored.signature.outputs.input_names() == ["output", "n_nodes"]
    assert (local / "pyfunc_model.py").read_text() == pyfunc_model.read_text()
    assert (local / "requirements.txt").read_text().split() == [
        f"mlflow=={mlflow.__version__}",
        "retroln[infer]",
    ]
    assert (local / "artifacts/bundle/contract.json").exists()


def test_loading_the_stored_model_goes_through_the_bundles_own_check(settings, run, bundle, tmp_path):
    pytest.importorskip("nnunetv2")
    from mlflow.artifacts import download_artifacts

    registry = MlflowRegistry.of(settings)
    registry.register(bundle, run.run_id, {})
    location = run.connection.client.get_model_version_download_uri(registry.name, "1")
    local = download_artifacts(
        artifact_uri=location, dst_path=str(tmp_path), tracking_uri=settings.mlflow_uri
    )
    from mlflow.pyfunc import load_model

    with pytest.raises(NotFoundError, match="no model bundle"):
        load_model(local)


def test_tampered_bundles_are_refused(settings, run, bundle, tmp_path):
    registry = MlflowRegistry.of(settings)
    registry.register(bundle, run.run_id, {})
    fetched = registry.fetch(1, tmp_path / "cache")
    (fetched / "fold_0/checkpoint_final.pth").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="expected: sha256"):
        registry.fetch(1, tmp_path / "cache")
    shutil.rmtree(fetched)
    assert tree_sha256(registry.fetch(1, tmp_path / "cache")) == tree_sha256(bundle)


def test_a_bundle_changed_in_the_artifact_store_never_arrives(
    embedded, run, bundle, settings, tmp_path, request
):
    registry = MlflowRegistry.of(settings)
    registry.register(bundle, run.run_id, {})
    root = embedded / "artifacts"
    if settings.mlflow_uri.startswith("http"):
        root = request.getfixturevalue("server").folder / "served"
    model_id = run.connection.client.get_model_version_download_uri(registry.name, "1").split("/")[-2]
    (stored,) = root.rglob(f"{model_id}/artifacts/artifacts/bundle/contract.json")
    stored.write_text('{"hu": [0, 1]}')
    with pytest.raises(IntegrityError):
        registry.fetch(1, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_bundle_that_the_artifact_store_keeps_altered_makes_no_version(settings, run, bundle, monkeypatch):
    registry = MlflowRegistry.of(settings)
    genuine = registry.connection.client.log_model_artifacts

    def framed(model_id, folder):
        (checkpoint,) = Path(folder).rglob("checkpoint_final.pth")
        checkpoint.write_bytes(b"d;chunk-signature\r\n" + checkpoint.read_bytes())
        genuine(model_id, folder)

    monkeypatch.setattr(registry.connection.client, "log_model_artifacts", framed)
    with pytest.raises(IntegrityError, match="artifact store kept other bytes than it was sent"):
        registry.register(bundle, run.run_id, {})
    assert registry.versions() == []


def test_aliases_move_and_go(settings, run, bundle):
    registry = MlflowRegistry.of(settings)
    assert registry.get_alias("champion") is None
    registry.delete_alias("champion")
    registry.register(bundle, run.run_id, {})
    (bundle / "more").write_text("x")
    registry.register(bundle, run.run_id, {})
    registry.set_alias("champion", 1)
    registry.set_alias("candidate", 2)
    assert (registry.get_alias("champion"), registry.get_alias("candidate")) == (1, 2)
    registry.set_alias("champion", 2)
    assert registry.versions()[0].aliases == ("candidate", "champion")
    registry.delete_alias("candidate")
    assert registry.get_alias("candidate") is None


def test_unknown_versions_and_the_fixed_hash_tag_are_refused(settings, run, bundle, tmp_path):
    registry = MlflowRegistry.of(settings)
    assert registry.versions() == []
    registry.register(bundle, run.run_id, {})
    for refused in (
        lambda: registry.set_alias("champion", 9),
        lambda: registry.set_tag(9, "a", "b"),
        lambda: registry.fetch(9, tmp_path),
    ):
        with pytest.raises(NotFoundError, match="no version 9"):
            refused()
    with pytest.raises(ConflictError):
        registry.set_tag(1, "bundle_sha256", "0" * 64)
    registry.set_tag(1, "withdrawn", "2026-01-01")
    assert registry.tags(1)["withdrawn"] == "2026-01-01"


def test_an_empty_bundle_is_refused(settings, run, tmp_path):
    with pytest.raises(NotFoundError, match="no bundle"):
        MlflowRegistry.of(settings).register(tmp_path / "nothing", run.run_id, {})


def test_an_outage_neither_stops_training_nor_loses_an_epoch(tmp_path, caplog):
    """Six seconds of outage; a minute with RETROLN_LONG_TESTS set."""
    server = MlflowServer(tmp_path)
    server.start()
    losses, stopped_at, away_s = {}, None, 60.0 if os.environ.get("RETROLN_LONG_TESTS") else 6.0
    try:
        settings = Settings(mlflow_uri=server.uri, work_dir=tmp_path / "work")
        with training_run(settings, name="outage", params={}) as opened:
            pass
        with attached(settings, opened.run_id, "fold0") as run:
            for epoch in itertools.count():
                if epoch == 2:
                    server.stop()
                    stopped_at = time.monotonic()
                if stopped_at and time.monotonic() - stopped_at > away_s:
                    break
                losses[epoch] = 1 / (epoch + 1)
                run.log_epoch({"epoch": epoch, "fold0.train_loss": losses[epoch]})
                time.sleep(0.5)
            assert len(run.journal.read_text().splitlines()) == len(losses) - 2 > 2
            server.start()
            run.log_epoch({"epoch": len(losses), "fold0.train_loss": 0.0})
        kept = opened.connection.client.get_metric_history(opened.run_id, "fold0.train_loss")
        assert [(m.step, m.value) for m in kept] == [*losses.items(), (len(losses), 0.0)]
        assert [m.timestamp for m in kept] == sorted(m.timestamp for m in kept)
        assert kept[-1].timestamp - kept[2].timestamp > away_s * 900
        assert list((tmp_path / "work" / "journals").iterdir()) == []
        (warned,) = [record.message for record in caplog.records if record.name.startswith("retroln")]
        assert warned.startswith("metrics wait in ") and "MLflow does not answer" in warned
    finally:
        server.stop()


def _log_and_die(settings, run_id):
    """As a training process that is killed: what it logged waits, its last line is torn."""
    run = attach(settings, run_id, "fold1")
    run.log_epoch({"epoch": 0, "lr": 0.5})
    with run.journal.open("a") as stream:
        stream.write('{"run_id": "to')
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_sweep_delivers_what_waits_but_not_what_is_being_written(settings, run):
    away = settings.model_copy(update={"mlflow_uri": f"http://127.0.0.1:{_free_port()}"})
    dead = multiprocessing.get_context("spawn").Process(target=_log_and_die, args=(away, run.run_id))
    dead.start()
    dead.join(60)
    assert dead.exitcode == -signal.SIGKILL
    live = attach(away, run.run_id, "fold0")
    live.log_epoch({"epoch": 0, "train_loss": 1.0})
    live.log_epoch({"epoch": 1, "train_loss": 0.5})
    assert replay_waiting(settings) == 1
    assert (_history(run, "lr"), _history(run, "train_loss")) == ([(0, 0.5)], [])
    assert [path.name for path in live.journal.parent.iterdir()] == [live.journal.name]
    live.close()
    assert replay_waiting(settings, "another run") == 0
    assert replay_waiting(settings) == 2
    assert _history(run, "train_loss") == [(0, 1.0), (1, 0.5)]
    assert (replay_waiting(settings), list(live.journal.parent.iterdir())) == (0, [])


def test_sweep_leaves_what_mlflow_does_not_take(settings, run, caplog):
    away = settings.model_copy(update={"mlflow_uri": f"http://127.0.0.1:{_free_port()}"})
    with attached(away, run.run_id, "fold0") as part:
        part.log_epoch({"epoch": 0, "lr": 0.5})
    with caplog.at_level(logging.WARNING, "retroln"):
        assert replay_waiting(away) == 0
    assert "metrics still wait" in caplog.text
    assert json.loads(part.journal.read_text())["metrics"] == {"lr": 0.5}


def test_step_keeps_its_first_value(settings, run):
    run.log_epoch({"epoch": 0, "lr": 0.5})
    run.log_epoch({"epoch": 0, "lr": 0.4, "train_loss": 1.0})
    run.close()
    with attached(settings, run.run_id, "fold0") as again:
        again.log_epochs([{"epoch": 0, "lr": 0.3}, {"epoch": 1, "lr": 0.2}, {"epoch": 1, "lr": 0.1}])
    assert _history(run, "lr") == [(0, 0.5), (1, 0.2)]
    assert _history(run, "train_loss") == [(0, 1.0)]


def test_two_processes_do_not_share_a_journal(settings, run, monkeypatch):
    monkeypatch.setattr(journal, "_PATIENCE_S", 0.0)
    one, other = attach(settings, run.run_id, "fold0"), attach(settings, run.run_id, "fold0")
    one.log_epoch({"epoch": 0, "lr": 0.5})
    with pytest.raises(ConflictError, match="another process logs"):
        other.log_epoch({"epoch": 1, "lr": 0.5})
    one.close()
    other.log_epoch({"epoch": 1, "lr": 0.5})
    other.close()
    assert _history(run, "lr") == [(0, 0.5), (1, 0.5)]


def test_unfinished_run_is_found_by_its_tags(settings, tmp_path):
    tags = {"dataset.version": tmp_path.name, "train.spec": "a"}
    assert find_unfinished(settings, tags) is None
    run = start(settings, name="x", params={}, tags=tags)
    assert find_unfinished(settings, tags) == run.run_id
    assert find_unfinished(settings, {**tags, "train.spec": "b"}) is None
    fail(run, "no worker")
    assert find_unfinished(settings, tags) == run.run_id
    assert not is_finished(settings, run.run_id)
    run.end("FINISHED")
    assert find_unfinished(settings, tags) is None
    assert is_finished(settings, run.run_id)


def test_no_server_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = Settings(mlflow_uri=f"http://127.0.0.1:{_free_port()}", work_dir=tmp_path)
    with pytest.raises(UserError, match=r"check that MLflow at http://127\.0\.0\.1"):
        start(settings, name="x", params={})


def test_nothing_touches_the_process_wide_tracking_uri(settings, run, bundle):
    import mlflow

    MlflowRegistry.of(settings).register(bundle, run.run_id, {})
    assert mlflow.get_tracking_uri() != settings.mlflow_uri
    assert mlflow.active_run() is None


class TestTraces:
    """What names a patient in a run, found and taken out."""

    def test_rows_of_a_patient_are_found_and_taken_out(self, settings):
        manifest = {"version": "v", "members": [["C1", "P1", "train", 0], ["C2", "P2", "test", None]]}
        scores = {"cases": [{"case_id": "C1", "patient_id": "P1"}, {"case_id": "C2", "patient_id": "P2"}]}
        with training_run(settings, name="named", params={}, tags={"dataset.version": "v-named"}) as run:
            run.log_dataset(manifest, name="d", version="v")
            run.log_json(scores, "test/scores.json")
            run.log_figures({"curve": b"no JSON"})
            traces.set_tag(settings, run.run_id, "withdrawn.patients", "1")
            (during,) = traces.runs_tagged(settings, "dataset.version", "v-named")
        run.connection.client.delete_run(run.run_id)  # into MLflow's trash, where artifacts stay
        (after,) = traces.runs_tagged(settings, "dataset.version", "v-named")
        assert (during.run_id, during.under_way, during.in_trash) == (run.run_id, True, False)
        assert (after.run_id, after.under_way, after.in_trash) == (run.run_id, False, True)
        assert during.tags["withdrawn.patients"] == after.tags["withdrawn.patients"] == "1"
        found = traces.traces(settings, run.run_id, "P1")
        assert [one.path for one in found] == ["dataset/manifest.json", "test/scores.json"]
        for one in found:
            traces.redact(settings, one, "P1")
        assert traces.traces(settings, run.run_id, "P1") == []
        assert len(traces.traces(settings, run.run_id, "P2")) == 2
        folder = Path(run.connection.client.download_artifacts(run.run_id, "dataset"))
        left = json.loads((folder / "manifest.json").read_text())
        assert left == {"version": "v", "members": [["C2", "P2", "test", None]], "withdrawn_rows": 1}

    def test_a_tag_that_no_run_has_finds_nothing(self, settings):
        assert traces.runs_tagged(settings, "dataset.version", "v-of-nobody") == []


def test_an_experiment_that_was_deleted_is_named(settings):
    gone = settings.model_copy(update={"experiment": f"gone-{secrets.token_hex(4)}"})
    connection = Connection.of(gone)
    identifier = connection.experiment_id
    connection.client.delete_experiment(identifier)
    with pytest.raises(RefusedError, match=f"was deleted; fix: `mlflow experiments restore -x {identifier}`"):
        start(gone, name="t", params={})
    with pytest.raises(RefusedError, match="was deleted"):
        rights(gone)


def test_a_run_that_was_deleted_is_named_and_keeps_its_metrics(settings, run, caplog):
    run.connection.client.delete_run(run.run_id)
    run.log_metrics({"dice": 0.5})
    assert "changes nothing that was deleted" in caplog.text
    restore = rf"{run.run_id} must be in the 'active' state.*fix: `mlflow runs restore --run-id"
    for call in (
        lambda: run.set_tag("a", "b"),
        lambda: start(settings, name="t", params={}, run_id=run.run_id),
        lambda: run.end("FINISHED"),
    ):
        with pytest.raises(RefusedError, match=restore) as caught:
            call()
    assert caught.value.file == run.journal and run.journal.read_text().count("dice") == 1
    run.connection.client.restore_run(run.run_id)
    run.end("FINISHED")
    assert _history(run, "dice") == [(0, 0.5)]


def test_a_model_whose_files_are_gone_is_named(settings, run, bundle, tmp_path, embedded, request):
    registry = MlflowRegistry.of(settings)
    registry.register(bundle, run.run_id, {})
    root = embedded / "artifacts"
    if settings.mlflow_uri.startswith("http"):
        root = request.getfixturevalue("server").folder / "served"
    place = run.connection.client.get_model_version_download_uri(registry.name, "1")
    for folder in root.rglob(place.split("/")[-2]):
        shutil.rmtree(folder)
    with pytest.raises(NotFoundError, match=f"{place}: MLflow has not the files of this model any more"):
        registry.fetch(1, tmp_path / "cache")


def test_an_apostrophe_in_the_models_name(settings):
    registry = MlflowRegistry.of(
        settings.model_copy(update={"model_name": f"St Mary's {secrets.token_hex(4)}"})
    )
    registry.connection.client.create_registered_model(registry.name)
    assert registry.versions() == []


def test_what_mlflow_refuses_is_no_outage(settings):
    connection = Connection.of(settings)
    with pytest.raises(RefusedError, match="INVALID_PARAMETER_VALUE"), translated(connection.uri):
        connection.client.search_model_versions("name = 'a'b'")
