"""Migrations make exactly what the models say, once, on an operator's word; some rows never change."""

import multiprocessing
import os
import secrets
import sqlite3
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from infra.servers import make_catalog, make_database
from infra.stack.lifecycle import upgrade_catalog
from infra.stack.plan import Stack
from infra.stack.supervisor import Supervisor
from retroln.catalog import migrations
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.database import revision_at, upgrade_database
from retroln.catalog.models import Base
from retroln.catalog.records import LandmarkReviewDraft, ScanDraft
from retroln.catalog.revisions import WANTED
from retroln.errors import ConflictError, SettingsError, UnavailableError, UserError


def test_models_and_migrations_agree(catalog: Catalog):
    with catalog.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_check_constraints_agree_too(catalog: Catalog):
    """`compare_metadata` does not look at them."""
    found = inspect(catalog.database.engine)
    said = {
        (table.name, str(constraint.name))
        for table in Base.metadata.sorted_tables
        for constraint in table.constraints
        if type(constraint).__name__ == "CheckConstraint"
    }
    tables = [table.name for table in Base.metadata.sorted_tables]
    checks = {(table, check["name"]) for table in tables for check in found.get_check_constraints(table)}
    assert said
    assert checks == said


def test_the_wanted_schema_is_that_of_the_newest_migration():
    assert ScriptDirectory.from_config(_alembic()).get_heads() == [WANTED]


def _open(url: str) -> int:
    catalog = Catalog.open(url)
    run_id = catalog.begin_run("ingest", {})
    catalog.close()
    return run_id


def test_many_processes_may_open_a_new_sqlite_catalog_at_once(tmp_path: Path):
    # an executor, because a pool waits for ever for the answer of a child that died
    url = f"sqlite:///{tmp_path}/new/catalog.db"
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(_open, [url] * 8))
    assert sorted(runs) == list(range(1, 9))


def test_of_many_processes_that_upgrade_at_once_one_does_it(new_catalog_url: str):
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        before = list(pool.map(upgrade_database, [new_catalog_url] * 4))
    assert sorted(before, key=str) == [WANTED, WANTED, WANTED, None]
    catalog = Catalog.open(new_catalog_url)
    assert catalog.runs() == []
    catalog.close()


def test_a_failed_migration_leaves_nothing(new_catalog_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("alembic.op.execute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        upgrade_database(new_catalog_url)
    monkeypatch.undo()
    engine = create_engine(new_catalog_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    assert upgrade_database(new_catalog_url) is None
    catalog = Catalog.open(new_catalog_url)
    assert catalog.runs() == []
    catalog.close()


def _retroln(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as an operator calls it."""
    variables = {"RETROLN_CATALOG_URL": url, "RETROLN_ENV_FILE": "/dev/null"}
    command = [sys.executable, "-m", "retroln.cli", *words]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


class TestOnPostgres:
    """A server's catalog is migrated by `retroln catalog upgrade` and by nothing else."""

    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        """An empty database."""
        return make_database(postgres_url, f"operator{secrets.token_hex(4)}")

    def _tables(self, url: str) -> set[str]:
        engine = create_engine(url)
        names = set(inspect(engine).get_table_names())
        engine.dispose()
        return names

    @pytest.mark.parametrize("words", [["status"], ["requeue", "c1"], ["audit"]])
    def test_other_commands_leave_an_older_schema_alone(self, url: str, words: list[str]) -> None:
        _upgrade(url, "0006")
        before = self._tables(url)
        done = _retroln(url, *words)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert "schema is older than this RetroLN" in line
        assert f"expected: schema {WANTED}; got: schema 0006; fix: back up, stop the workers" in line
        assert "`retroln catalog upgrade`" in line
        assert (revision_at(url), self._tables(url)) == ("0006", before)

    def test_other_commands_leave_an_empty_database_alone(self, url: str) -> None:
        done = _retroln(url, "status")
        assert done.returncode == 2
        assert "holds no catalog yet" in done.stderr and "`retroln catalog upgrade`" in done.stderr
        assert self._tables(url) == set()

    def test_the_command_upgrades_once(self, url: str) -> None:
        _upgrade(url, "0006")
        assert _retroln(url, "catalog").stdout == f"schema 0006, wanted {WANTED}\n"
        done = _retroln(url, "catalog", "upgrade")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"schema 0006 -> {WANTED}\n", "")
        again = _retroln(url, "catalog", "upgrade")
        assert (again.returncode, again.stdout) == (0, f"schema {WANTED} already, nothing to do\n")
        assert _retroln(url, "catalog").stdout == f"schema {WANTED}, wanted {WANTED}\n"
        assert _retroln(url, "status").returncode == 0

    @pytest.mark.parametrize("words", [["status"], ["catalog", "upgrade"]])
    @pytest.mark.parametrize(
        ("revision", "says"),
        [("9999", "another version of RetroLN"), ("bd07f7e963c5", "another program's tables")],
    )
    def test_a_newer_or_foreign_schema_is_refused(
        self, url: str, revision: str, says: str, words: list[str]
    ) -> None:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32))"))
            connection.execute(text(f"INSERT INTO alembic_version VALUES ('{revision}')"))
        engine.dispose()
        done = _retroln(url, *words)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert says in done.stderr and f"got: schema {revision}; fix: " in done.stderr
        assert self._tables(url) == {"alembic_version"}


class TestOfAStack:
    """`make stack` on a stack that is there: its tables follow, and no worker sees them change."""

    class Elsewhere(Stack):
        """A stack whose catalog is in a database of the test."""

        def database_url(self, name: str, driver: str) -> str:
            return str(self.home)

        secrets = {"postgres": {"retroln": ""}}  # noqa: RUF012

    class Watched(Supervisor):
        """Runs nothing, and notes the schema at the moment that programs are stopped."""

        def __init__(self, url: str) -> None:
            self.url = url
            self.stopped: list[tuple[str | None, tuple[str, ...]]] = []

        def states(self) -> dict[str, dict[str, Any]]:
            return {"postgres": {}, "prefect": {}, "worker-flows": {}, "worker-shards-0": {}}

        def stop(self, *names: str) -> None:
            self.stopped.append((revision_at(self.url), names))

    def test_workers_stop_before_the_tables_change_and_once_only(self, postgres_url: str) -> None:
        url = make_database(postgres_url, f"stack{secrets.token_hex(4)}")
        _upgrade(url, "0006")
        stack, supervisor, told = self.Elsewhere(url, 0), self.Watched(url), []  # type: ignore[arg-type]
        upgrade_catalog(stack, supervisor, told.append)
        assert supervisor.stopped == [("0006", ("worker-flows", "worker-shards-0"))]
        assert (revision_at(url), told) == (WANTED, ["the catalog's tables"])
        upgrade_catalog(stack, supervisor, told.append)
        assert len(supervisor.stopped) == len(told) == 1


def test_opening_a_catalog_that_is_current_loads_no_alembic(catalog: Catalog, catalog_url: str):
    program = (
        "import sys; from retroln.catalog.catalog import Catalog; "
        f"Catalog.open({catalog_url!r}).runs(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])))
    config.set_main_option("path_separator", "os")
    return config


def _upgrade(url: str, revision: str, *statements: str) -> None:
    """Bring a new catalog to an older revision and fill it."""
    config = _alembic()
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def test_a_catalog_of_the_first_release_keeps_what_it_holds(new_catalog_url: str, tmp_path: Path):
    (tmp_path / "new").mkdir()
    moment = "'2026-01-02 03:04:05+00:00'"
    if new_catalog_url.startswith("sqlite"):
        moment = "'2026-01-02 03:04:05.000000'"
    _upgrade(
        new_catalog_url,
        "0001",
        "INSERT INTO runs (id, flow, parameters, state, started_at) "
        f"VALUES (1, 'ingest', '{{}}', 'running', {moment})",
        "INSERT INTO scans (id, case_id, patient_id, revision, source_uri, source_fingerprint, label_ids, "
        "ct_key, state, created_at, updated_at) VALUES (1, 'c1', 'p1', 1, '{\"ct\": \"k\"}', 'f', "
        f"'verse', 'k', 'ingested', {moment}, {moment})",
        "INSERT INTO case_events (case_id, scan_id, run_id, to_state, at) "
        f"VALUES ('c1', 1, 1, 'ingested', {moment})",
        "INSERT INTO model_audit (action, model_name, version, reviewer, comment, gate, at) "
        f"VALUES ('promote', 'm', 1, 'r', 'c', '{{}}', {moment})",
    )
    upgrade_database(new_catalog_url)
    catalog = Catalog.open(new_catalog_url)
    history = catalog.case_history("c1")
    assert (history.scans[0].source_uri, history.scans[0].created_at) == (
        {"ct": "k"},
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    assert [event.to_state for event in history.events] == ["ingested"]
    assert [(audit.action, audit.reviewer) for audit in catalog.audits()] == [("promote", "r")]
    assert [run.run_id for run in catalog.unfinished_runs()] == [1]
    assert catalog.claim(1, "me", 60.0)
    catalog.note_outcome(1, CaseOutcome("c1", Outcome.DONE))
    assert catalog.count_outcomes(1)[Outcome.DONE] == 1
    catalog.close()


def test_scans_keep_their_references_and_rules_when_they_learn_to_be_withdrawn(
    new_catalog_url: str, tmp_path: Path
):
    """SQLite makes the table anew, while other tables refer to its rows."""
    (tmp_path / "new").mkdir()
    moment = "'2026-01-02 03:04:05.000000'" if new_catalog_url.startswith("sqlite") else "now()"
    scan = (
        "INSERT INTO scans (id, case_id, patient_id, revision, source_uri, source_fingerprint, label_ids, "
        "ct_key, state, created_at, updated_at) VALUES ({number}, 'c1', 'p1', {number}, '{{}}', 'f', "
        f"'verse', 'k', '{{state}}', {moment}, {moment})"
    )
    _upgrade(
        new_catalog_url,
        "0004",
        scan.format(number=1, state="superseded"),
        scan.format(number=2, state="prepared"),
        f"INSERT INTO case_events (case_id, scan_id, to_state, at) VALUES ('c1', 1, 'ingested', {moment})",
    )
    upgrade_database(new_catalog_url)
    catalog = Catalog.open(new_catalog_url)
    assert [(s.scan_id, s.state) for s in catalog.case_history("c1").scans] == [
        (1, "superseded"),
        (2, "prepared"),
    ]
    for refused, why in (
        ("DELETE FROM scans WHERE id = 1", r"(?i)foreign key"),
        (scan.format(number=3, state="ingested"), r"(?i)unique"),
        ("UPDATE scans SET state = 'nonsense' WHERE id = 2", "ck_scans_state"),
    ):
        with pytest.raises(ConflictError, match=why), catalog.database.writing() as session:
            session.execute(text(refused))
    with catalog.database.writing() as session:
        session.execute(text("UPDATE scans SET state = 'withdrawn' WHERE id = 2"))
    catalog.close()


def test_landmarks_of_an_older_catalog_have_no_confidence_and_take_words(
    new_catalog_url: str, tmp_path: Path
):
    (tmp_path / "new").mkdir()
    moment = "'2026-01-02 03:04:05.000000'" if new_catalog_url.startswith("sqlite") else "now()"
    _upgrade(
        new_catalog_url,
        "0006",
        "INSERT INTO scans (id, case_id, patient_id, revision, source_uri, source_fingerprint, label_ids, "
        "ct_key, state, reason, created_at, updated_at) VALUES (1, 'c1', 'p1', 1, '{}', 'f', 'verse', 'k', "
        f"'quarantined', 'unanchored', {moment}, {moment})",
        "INSERT INTO landmarks (scan_id, source, label_ids, rung, anchored, truncated, findings, levels, "
        f"created_at) VALUES (1, 'provided', 'verse', 'l2', true, '[]', '[]', '{{}}', {moment})",
    )
    upgrade_database(new_catalog_url)
    catalog = Catalog.open(new_catalog_url)
    ((scan, landmarks),) = catalog.landmark_queue()
    assert landmarks is not None
    assert (landmarks.rung, landmarks.confidence, landmarks.picture_key) == ("l2", None, None)
    catalog.review_landmarks(
        LandmarkReviewDraft(scan_id=scan.scan_id, action="accept", reviewer="r", comment="c")
    )
    assert catalog.scans_to_prepare() == [1]
    catalog.close()


def test_an_outcome_that_nobody_knows_is_refused(catalog: Catalog):
    run_id = catalog.begin_run("prepare", {})
    with pytest.raises(ConflictError, match="outcome"), catalog.database.writing() as session:
        session.execute(
            text("INSERT INTO run_outcomes (run_id, case_id, outcome) VALUES (:id, 'a', 'fine')"),
            {"id": run_id},
        )


def test_a_catalog_of_a_newer_release_is_left_alone(catalog: Catalog, catalog_url: str):
    with catalog.database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match=r"another version of RetroLN.*got: schema 9999"):
        Catalog.open(catalog_url)
    with pytest.raises(UserError, match="another version of RetroLN"):
        upgrade_database(catalog_url)


@pytest.mark.parametrize("table", ["model_audit", "case_events"])
@pytest.mark.parametrize("statement", ["UPDATE {table} SET id = id + 100", "DELETE FROM {table}", "replace"])
def test_decisions_and_events_are_append_only(catalog: Catalog, table: str, statement: str):
    # how a whole table is overwritten differs between the databases
    replacing = {
        "sqlite": "INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
        "postgresql": "TRUNCATE {table} CASCADE",
    }
    command = replacing[catalog.database.engine.dialect.name] if statement == "replace" else statement
    catalog.add_scan(
        ScanDraft(case_id="a", patient_id="p", source_uri={}, source_fingerprint="f", ct_key="k"), None
    )
    catalog.add_audit(action="promote", model_name="m", version=1, reviewer="r", comment="c")
    with (
        pytest.raises(DBAPIError, match=f"{table} is append-only"),
        catalog.database.engine.begin() as connection,
    ):
        connection.execute(text(command.format(table=table)))
    assert len(catalog.case_history("a").events) == len(catalog.audits()) == 1


def test_a_row_that_breaks_a_rule_is_refused(catalog: Catalog):
    run_id = catalog.begin_run("ingest", {})
    with pytest.raises(ConflictError, match="balanced"), catalog.database.writing() as session:
        session.execute(
            text(
                "UPDATE runs SET n_in = 5, n_done = 1, n_skipped = 1, n_quarantined = 1, n_failed = 1 "
                "WHERE id = :id"
            ),
            {"id": run_id},
        )
    with pytest.raises(ConflictError, match=r"(?i)foreign key"):
        catalog.add_scan(
            ScanDraft(case_id="a", patient_id="p", source_uri={}, source_fingerprint="f", ct_key="k"), 99
        )
    assert catalog.current_scan("a") is None


def test_sqlite_lets_readers_pass_a_writer(tmp_path: Path):
    catalog = Catalog.open(f"sqlite:///{tmp_path}/deep/down/catalog.db")
    with catalog.database.writing() as session:
        session.execute(text("DELETE FROM nodes"))
        assert catalog.runs() == []
    catalog.close()
    raw = sqlite3.connect(tmp_path / "deep" / "down" / "catalog.db")
    assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    raw.close()


@pytest.mark.parametrize("url", ["mysql://h/d", "nonsense", "var/catalog.db"])
def test_other_databases_are_refused(url: str):
    with pytest.raises(SettingsError, match="RETROLN_CATALOG_URL"):
        Catalog.open(url)


def test_a_server_that_is_away_is_unavailable_and_keeps_its_password():
    with pytest.raises(UnavailableError, match="does not answer") as caught:
        Catalog.open("postgresql://app:hunter2@127.0.0.1:9/app")
    assert "hunter2" not in str(caught.value)


def test_a_wrong_password_is_a_matter_of_settings(postgres_url: str):
    user, _, place = postgres_url.rpartition("@")
    with pytest.raises(SettingsError, match="refused the login"):
        Catalog.open(f"{user.rpartition(':')[0]}:wrong@{place}")


def test_a_plain_postgresql_address_works(postgres_url: str):
    plain = make_catalog(postgres_url, "plain_address").replace("+psycopg", "")
    catalog = Catalog.open(plain)
    assert sum(catalog.count_by_state().values()) == 0
    catalog.close()


def test_a_file_that_is_no_catalog_is_not_touched(tmp_path: Path):
    (tmp_path / "notes.db").write_bytes(b"these are notes, not a database, " * 40)
    with pytest.raises(UserError, match=r"notes\.db"):
        Catalog.open(f"sqlite:///{tmp_path}/notes.db")
    assert (tmp_path / "notes.db").read_bytes().startswith(b"these are notes")
