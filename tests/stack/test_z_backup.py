"""Save the running stack, bring it back on other ports, find everything there. Last, since it pauses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from infra.ports import free_ports
from infra.stack.plan import Stack
from retroln.settings import Settings
from retroln.steps.workspace import Workspace, open_workspace
from retroln.tracking.connection import Connection
from tests.stack.driver import Platform, wait


def _infra(stack: Stack, module: str, *words: str) -> None:
    environment = {
        **os.environ,
        "RETROLN_STACK_HOME": str(stack.home),
        "RETROLN_STACK_PORT": str(stack.first_port),
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("RETROLN_ENV_FILE", None)
    command = [sys.executable, "-m", f"infra.{module}", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def filled(platform: Platform, tmp_path: Path) -> Platform:
    """A case in the catalog and the store, a version with its bundle in the registry."""
    if platform.catalog.current_scan("SAVED") is None:
        platform.deliver("SAVED", "PAT-SAVED")
        with platform.without_trigger("prepare what was ingested"):  # nothing may change what is compared
            platform.run("ingest")
    platform.at_rest()
    registry = platform.workspace.registry
    if not registry.aliases():
        (tmp_path / "model.txt").write_text("weights")
        connection = Connection.of(platform.settings)
        run = connection.client.create_run(connection.experiment_id)
        registry.set_alias("candidate", registry.register(tmp_path, run.info.run_id, {}))
    return platform


@pytest.fixture
def second() -> Iterator[Stack]:
    """A place for another stack."""
    home = Path(tempfile.mkdtemp(prefix="retroln-restored-"))
    home.chmod(0o711)
    stack = Stack(home, free_ports(20))
    try:
        yield stack
    finally:
        _infra(stack, "stack", "down")
        shutil.rmtree(home, ignore_errors=True)


def test_a_restored_stack_holds_what_was_saved(
    filled: Platform, second: Stack, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = tmp_path_factory.mktemp("backups") / "today"
    before, runs = _content(filled.workspace), _started(filled.prefect)
    objects = _objects(filled.stack)
    _infra(filled.stack, "backup", "save", str(backup))
    assert {path.stat().st_mode & 0o077 for path in [backup, *backup.rglob("*")]} == {0}
    states = {name: info["statename"] for name, info in filled.supervisor.states().items()}
    assert set(states.values()) == {"RUNNING"}, states

    _infra(second, "backup", "restore", str(backup))
    _infra(second, "stack", "up")
    monkeypatch.setenv("RETROLN_ENV_FILE", str(second.home / "retroln.env"))
    restored = open_workspace(Settings())
    assert restored.settings.catalog_url != filled.settings.catalog_url
    assert _content(restored) == before
    assert _objects(second) == objects
    with restored.scratch() as folder:
        version = max(before["aliases"].values())
        assert restored.registry.fetch(version, folder).is_dir()
    assert runs
    assert runs <= _flow_runs(second)
    wait(lambda: filled.prefect.read_work_pool("cpu-pool").status == "READY", 60, "the first does not go on")


def _content(workspace: Workspace) -> dict[str, Any]:
    """What of the catalog and the registry must come back as it was."""
    from sqlalchemy import text

    tables = ("scans", "case_events", "model_audit", "predictions", "runs")
    with workspace.catalog.database.engine.connect() as connection:
        rows = {table: connection.scalar(text(f"SELECT count(*) FROM {table}")) for table in tables}
    return {"rows": rows, "aliases": workspace.registry.aliases(), "saved": _saved(workspace)}


def _saved(workspace: Workspace) -> list[tuple[str, str | None]]:
    """The case's objects with the hashes in their metadata; each is read, which checks it."""
    found = []
    for info in workspace.store.list("scans/SAVED"):
        workspace.store.get_bytes(info.key)
        found.append((info.key, workspace.store.stat(info.key).sha256))
    assert found
    return found


def _objects(stack: Stack) -> dict[str, dict[str, int]]:
    """Key and size of every object of the platform's own buckets."""
    with closing(stack.s3("admin").client()) as client:
        return {
            bucket: {
                entry["Key"]: entry["Size"]
                for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
                for entry in page.get("Contents", [])
            }
            for bucket in ("store", "mlflow")
        }


def _flow_runs(stack: Stack) -> set[Any]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    values = stack.client_environment("operator")
    updates = {
        PREFECT_API_URL: values["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: values["PREFECT_API_AUTH_STRING"],
    }
    with temporary_settings(updates), get_client(sync_client=True) as client:
        return _started(client)


def _started(client: Any) -> set[Any]:
    """Runs that began; those that are merely scheduled are made anew by a deployment."""
    return {run.id for run in client.read_flow_runs() if run.start_time}
