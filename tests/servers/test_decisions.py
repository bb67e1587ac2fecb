"""Decisions under contention, on both databases, and a review through a real `mlflow server`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from infra.ports import free_ports
from retroln.catalog import migrations
from retroln.catalog.catalog import Catalog
from retroln.catalog.database import upgrade_database
from retroln.catalog.models import ModelAudit
from retroln.errors import ConflictError
from retroln.settings import Settings
from retroln.steps import promote
from retroln.steps.promote import Decision
from retroln.steps.reconcile import reconcile
from retroln.steps.workspace import open_workspace
from tests.stand_in import approve, register


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An `mlflow server` with proxied artifacts."""
    folder, port = tmp_path_factory.mktemp("mlflow-server"), free_ports(1)
    options = {
        "--backend-store-uri": f"sqlite:///{folder}/server.db",
        "--artifacts-destination": f"{folder}/served",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                *[word for option in options.items() for word in option],
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)


def _wait_until_healthy(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture
def settings(tmp_path: Path, mlflow_uri: str, catalog_url: str) -> Iterator[Settings]:
    """A catalog in either database and a model of its own on the MLflow server."""
    made = Settings(
        source_uri=f"file://{tmp_path}/source",
        store_uri=f"file://{tmp_path}/store",
        catalog_url=catalog_url,
        mlflow_uri=mlflow_uri,
        work_dir=tmp_path / "work",
        model_name=tmp_path.name,
    )
    yield made
    open_workspace(made).catalog.close()


def _post(settings: Settings, path: str, **body: Any) -> None:
    """What MLflow's own page sends."""
    request = urllib.request.Request(
        f"{settings.mlflow_uri}/api/2.0/mlflow/{path}",
        data=json.dumps({"name": settings.model_name, **body}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.status == 200


def test_reviewer_approves_on_the_server_and_can_take_it_back(settings: Settings, tmp_path: Path) -> None:
    registry = open_workspace(settings).registry
    first, second = register(settings, tmp_path / "b1"), register(settings, tmp_path / "b2")
    for version in (first, second):
        asked = {"review.decision": "approve", "review.reviewer": "Dr A", "review.comment": f"seen {version}"}
        for key, value in asked.items():
            _post(settings, "model-versions/set-tag", version=str(version), key=key, value=value)
        _post(settings, "registered-models/alias", alias="approved", version=str(version))
        found = reconcile(settings)
        assert found.decision is not None
        assert found.decision.version == version
    assert registry.aliases() == {"champion": second, "previous": first}
    _post(settings, "registered-models/alias", alias="champion", version=str(first))
    assert len(reconcile(settings).remarks) == 1
    assert registry.get_alias("champion") == second
    assert promote.rollback(settings, reviewer="Dr B", comment="misses nodes") == first
    _post(settings, "registered-models/alias", alias="approved", version=str(second))
    assert "review.decision" in (reconcile(settings).waiting or "")
    assert registry.aliases() == {"champion": first, "approved": second}
    actions = [row.action for row in open_workspace(settings).catalog.audits(settings.model_name)]
    assert actions == ["promote", "promote", "restore", "rollback"]


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two deciders finish their gates before either of them writes."""
    gates, real = threading.Barrier(2, timeout=60), promote._judge

    def judge(*arguments: Any) -> Any:
        decision = real(*arguments)
        gates.wait()
        return decision

    monkeypatch.setattr(promote, "_judge", judge)


def _at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each call returned or raised."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ConflictError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


@pytest.mark.usefixtures("in_step")
def test_of_two_promotions_at_once_one_is_refused(settings: Settings, tmp_path: Path) -> None:
    versions = [register(settings, tmp_path / f"b{number}") for number in (1, 2)]
    found = _at_once(
        *(lambda v=v: promote.promote(settings, v, reviewer="Dr A", comment="mine") for v in versions)
    )
    (won,) = [decision for decision in found if isinstance(decision, Decision)]
    (lost,) = [error for error in found if isinstance(error, ConflictError)]
    assert "came first" in str(lost)
    rows = open_workspace(settings).catalog.audits(settings.model_name)
    assert [(row.version, row.follows) for row in rows] == [(won.version, 0)]
    assert open_workspace(settings).registry.get_alias("champion") == won.version
    assert reconcile(settings).remarks == ()


@pytest.mark.usefixtures("in_step")
def test_two_reconciliations_decide_one_approval_once(settings: Settings, tmp_path: Path) -> None:
    version = register(settings, tmp_path / "b1")
    approve(settings, version)
    found = _at_once(*[lambda: reconcile(settings)] * 2)
    assert len([result for result in found if result.decision]) == 1
    (told,) = [result.remarks for result in found if not result.decision]
    assert "came first" in told[0]
    assert len(open_workspace(settings).catalog.audits(settings.model_name)) == 1
    assert open_workspace(settings).registry.aliases() == {"champion": version}


def _audit(catalog: Catalog, **more: Any) -> int:
    return catalog.add_audit(
        **{"action": "promote", "model_name": "m", "version": 1, "reviewer": "r", "comment": "c", **more}
    )


def test_database_itself_refuses_a_second_successor(catalog: Catalog, catalog_url: str) -> None:
    """The other's row is written but not committed when this one looks, so only the database can tell."""
    other = Catalog.open(catalog_url)
    row = ModelAudit(
        action="promote", model_name="m", version=1, reviewer="r", comment="first", gate={}, follows=0
    )
    with ThreadPoolExecutor(1) as pool:
        with other.database.writing() as session:
            session.add(row)
            session.flush()
            late = pool.submit(_audit, catalog, version=2, follows=0)
            time.sleep(0.5)
            assert not late.done()
        with pytest.raises(ConflictError, match="came first"):
            late.result(60)
    other.close()
    assert [(row.version, row.follows) for row in catalog.audits()] == [(1, 0)]


def test_chains_of_two_models_are_apart_and_other_rows_follow_nothing(catalog: Catalog) -> None:
    first = _audit(catalog)
    _audit(catalog, model_name="other")
    _audit(catalog, action="refuse", version=2)
    _audit(catalog, action="rollback", version=1, follows=first)
    assert [(row.model_name, row.action, row.follows) for row in catalog.audits()] == [
        ("m", "promote", 0),
        ("other", "promote", 0),
        ("m", "refuse", None),
        ("m", "rollback", first),
    ]
    with pytest.raises(ConflictError, match="came first"):
        _audit(catalog, follows=first)


OLD_ROWS = [
    ("refuse", "m", None),
    ("promote", "m", 0),
    ("promote", "other", 0),
    ("promote", "m", 2),
    ("reject", "other", None),
    ("rollback", "m", 4),
    ("promote", "other", 3),
]


@pytest.fixture
def migrated(new_catalog_url: str) -> Iterator[Catalog]:
    """A catalog whose audit had rows before its decisions were chained."""
    if new_catalog_url.startswith("sqlite"):
        Path(new_catalog_url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    engine = create_engine(new_catalog_url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for number, (action, model, _) in enumerate(OLD_ROWS, start=1):
            connection.execute(
                text(
                    "INSERT INTO model_audit "
                    "(action, model_name, version, previous_version, reviewer, comment, gate, at) VALUES "
                    "(:action, :model, :n, :n, 'Dr A', 'why', '{\"passed\": true}', '2026-01-02 03:04:05')"
                ),
                {"action": action, "model": model, "n": number},
            )
    engine.dispose()
    upgrade_database(new_catalog_url)
    opened = Catalog.open(new_catalog_url)
    yield opened
    opened.close()


def test_migration_chains_the_rows_that_exist_and_keeps_them(migrated: Catalog) -> None:
    rows = migrated.audits()
    assert [(row.action, row.model_name, row.follows) for row in rows] == OLD_ROWS
    assert [row.audit_id for row in rows] == list(range(1, 8))
    assert {(row.reviewer, row.comment, row.at.isoformat()[:19]) for row in rows} == {
        ("Dr A", "why", "2026-01-02T03:04:05")
    }
    assert [(row.version, row.previous_version, row.gate) for row in rows] == [
        (n, n, {"passed": True}) for n in range(1, 8)
    ]
    assert _audit(migrated, action="promote") == 8
    assert migrated.audits()[-1].follows == 6


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE model_audit SET follows = 99 WHERE id = 2",
        "DELETE FROM model_audit",
        "INSERT OR REPLACE INTO model_audit SELECT * FROM model_audit WHERE id = 2",
        "INSERT OR REPLACE INTO model_audit "
        "(action, model_name, version, reviewer, comment, gate, at, follows) "
        "SELECT action, model_name, 9, 'Dr X', 'mine', gate, at, follows FROM model_audit WHERE id = 2",
    ],
)
def test_migrated_audit_is_still_append_only(migrated: Catalog, statement: str) -> None:
    dialect = migrated.database.engine.dialect.name
    if "REPLACE" in statement and dialect == "postgresql":
        statement = "TRUNCATE model_audit"
    before = migrated.audits()
    with (
        pytest.raises(DBAPIError, match="model_audit is append-only"),
        migrated.database.engine.begin() as connection,
    ):
        connection.execute(text(statement))
    assert migrated.audits() == before
