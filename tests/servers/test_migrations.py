"""Migrations make exactly what the models say, once, whoever comes first; some rows never change."""

import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from retroln.catalog.catalog import Catalog
from retroln.catalog.models import Base
from retroln.catalog.records import ScanDraft
from retroln.errors import ConflictError, SettingsError, UnavailableError, UserError


def test_models_and_migrations_agree(catalog: Catalog):
    with catalog.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_check_constraints_agree_too(catalog: Catalog):
    """`compare_metadata` does not look at them."""
    found = inspect(catalog.database.engine)
    for table in Base.metadata.sorted_tables:
        said = {str(c.name) for c in table.constraints if type(c).__name__ == "CheckConstraint"}
        assert {check["name"] for check in found.get_check_constraints(table.name)} == said


def _open(url: str) -> int:
    catalog = Catalog.open(url)
    run_id = catalog.begin_run("ingest", {})
    catalog.close()
    return run_id


def test_many_processes_may_open_a_new_catalog_at_once(catalog_url: str):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        runs = pool.map(_open, [catalog_url] * 8, chunksize=1)
    assert sorted(runs) == list(range(1, 9))


def test_a_failed_migration_leaves_nothing(catalog_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("alembic.op.execute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Catalog.open(catalog_url)
    monkeypatch.undo()
    engine = create_engine(catalog_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    catalog = Catalog.open(catalog_url)
    assert catalog.runs() == []
    catalog.close()


def test_a_catalog_of_a_newer_release_is_left_alone(catalog: Catalog, catalog_url: str):
    with catalog.database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="another version of RetroLN"):
        Catalog.open(catalog_url)


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
    catalog = Catalog.open(postgres_url.replace("+psycopg", ""))
    assert sum(catalog.count_by_state().values()) == 0
    catalog.close()


def test_a_file_that_is_no_catalog_is_not_touched(tmp_path: Path):
    (tmp_path / "notes.db").write_bytes(b"these are notes, not a database, " * 40)
    with pytest.raises(UserError, match=r"notes\.db"):
        Catalog.open(f"sqlite:///{tmp_path}/notes.db")
    assert (tmp_path / "notes.db").read_bytes().startswith(b"these are notes")
