"""What real databases say when they are away, and when they are not: the class names what to do."""

import secrets
import socketserver
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from infra.servers import make_catalog
from retroln.catalog import database
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.errors import NotFoundError, RefusedError, SettingsError, UnavailableError


class _NoPostgres(socketserver.BaseRequestHandler):
    """Answers as a web server does that was sent something else."""

    def handle(self) -> None:
        self.request.recv(1024)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


class TestPostgres:
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return make_catalog(postgres_url, f"refusing{secrets.token_hex(4)}")

    @pytest.fixture
    def catalog(self, url: str) -> Iterator[Catalog]:
        opened = Catalog.open(url)
        yield opened
        opened.close()

    def _execute(self, catalog: Catalog, *statements: str) -> None:
        with catalog.database.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def test_a_dropped_table_fails_at_once(self, catalog: Catalog) -> None:
        self._execute(catalog, "DROP TABLE claims")
        with pytest.raises(RefusedError, match=r"lacks a table.*claims.*fix: `retroln catalog`"):
            catalog.release_all("me")

    def test_a_dropped_column_fails_at_once(self, catalog: Catalog) -> None:
        self._execute(catalog, "ALTER TABLE runs DROP COLUMN flow")
        with pytest.raises(RefusedError, match=r"lacks a table, a column.*runs\.flow"):
            catalog.runs()

    def test_a_missing_right_is_a_matter_of_logins(self, catalog: Catalog, url: str) -> None:
        role = f"guest{secrets.token_hex(4)}"
        self._execute(
            catalog,
            f"CREATE ROLE {role} LOGIN PASSWORD 'guest'",
            f"GRANT SELECT ON alembic_version TO {role}",
        )
        guest = make_url(url).set(username=role, password="guest").render_as_string(hide_password=False)
        opened = Catalog.open(guest)
        with pytest.raises(SettingsError, match=r"does not let this login do that.*runs.*grant it the right"):
            opened.runs()
        opened.close()

    def test_a_server_in_read_only_mode(self, url: str) -> None:
        catalog = Catalog.open(f"{url}?options=-c%20default_transaction_read_only%3Don")
        assert catalog.runs() == []
        with pytest.raises(RefusedError, match=r"read-only.*may be written"):
            catalog.begin_run("ingest", {})
        catalog.close()

    def test_a_database_that_does_not_exist(self, postgres_url: str) -> None:
        with pytest.raises(NotFoundError, match=r"no such database.*nowhere.*create the database"):
            Catalog.open(f"{postgres_url.rpartition('/')[0]}/nowhere")

    @pytest.mark.parametrize("password", ["wrong", ""])
    def test_a_wrong_or_missing_password(self, url: str, password: str) -> None:
        address = make_url(url)
        address = address.set(password=password) if password else address._replace(password=None)
        with pytest.raises(SettingsError, match=r"refused the login.*RETROLN_CATALOG_PASSWORD"):
            Catalog.open(address.render_as_string(hide_password=False))

    def test_a_user_that_does_not_exist(self, url: str) -> None:
        address = make_url(url).set(username="nobody_here")
        with pytest.raises(SettingsError, match="refused the login"):
            Catalog.open(address.render_as_string(hide_password=False))

    def test_a_connection_that_an_administrator_ends_is_an_outage(self, catalog: Catalog) -> None:
        with (
            pytest.raises(UnavailableError, match=r"does not answer.*administrator"),
            catalog.database.writing() as session,
        ):
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        assert catalog.runs() == []

    def test_a_lock_that_is_not_given_is_worth_another_try(self, catalog: Catalog) -> None:
        with catalog.database.writing() as holder:
            holder.execute(text("LOCK TABLE runs"))
            with pytest.raises(UnavailableError, match="is busy"), catalog.database.writing() as session:
                session.execute(text("SET LOCAL lock_timeout = 1"))
                session.execute(text("LOCK TABLE runs"))

    def test_too_many_connections_are_worth_another_try(self, catalog: Catalog, url: str) -> None:
        role = f"many{secrets.token_hex(4)}"
        self._execute(catalog, f"CREATE ROLE {role} LOGIN PASSWORD 'many' CONNECTION LIMIT 0")
        address = make_url(url).set(username=role, password="many")
        with pytest.raises(UnavailableError, match=r"is busy.*too many connections"):
            Catalog.open(address.render_as_string(hide_password=False))

    def test_text_that_it_cannot_hold(self, catalog: Catalog) -> None:
        with pytest.raises(RefusedError, match=r"cannot hold a value.*NUL"):
            catalog.begin_run("in\0gest", {})

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            ("sslmode=bogus", "as its address asks.*bogus"),
            ("foo=bar", "as its address asks.*foo"),
            ("connect_timeout=abc", "as its address asks.*abc"),
            ("target_session_attrs=bogus", "as its address asks.*bogus"),
            ("keepalives=abc", "as its address asks.*keepalives"),
            ("service=nowhere", "as its address asks.*nowhere"),
            ("options=-c%20nonsense%3D1", "as its address asks.*nonsense"),
            ("gssencmode=require", "as its address asks.*GSSAPI"),
            ("require_auth=gss", "refused the login.*gss"),
            ("channel_binding=require", "refused the login.*channel binding"),
        ],
    )
    def test_an_option_that_cannot_be_met_is_a_wrong_setting(self, url: str, option: str, said: str) -> None:
        with pytest.raises(SettingsError, match=rf"{said}.*mend RETROLN_CATALOG_URL"):
            Catalog.open(f"{url}?{option}")

    def test_a_password_file_that_is_missing_is_a_missing_password(self, url: str, tmp_path: Path) -> None:
        address = make_url(url)._replace(password=None).update_query_dict({"passfile": f"{tmp_path}/none"})
        with pytest.raises(SettingsError, match=r"refused the login.*no password"):
            Catalog.open(address.render_as_string(hide_password=False))

    def test_a_port_that_is_none_is_a_wrong_setting(self, url: str) -> None:
        address = make_url(url).set(port=99999, password="not-to-be-shown")
        with pytest.raises(SettingsError, match=r"as its address asks.*99999.*RETROLN_CATALOG_URL") as caught:
            Catalog.open(address.render_as_string(hide_password=False))
        assert "not-to-be-shown" not in str(caught.value)

    def test_another_service_at_the_address_is_a_wrong_setting(self, url: str) -> None:
        with (
            socketserver.TCPServer(("127.0.0.1", 0), _NoPostgres) as server,
            ThreadPoolExecutor(1) as beside,
        ):
            beside.submit(server.serve_forever, 0.05)
            address = make_url(url).set(host="127.0.0.1", port=server.server_address[1])
            try:
                with pytest.raises(SettingsError, match=r"as its address asks.*negotiation"):
                    Catalog.open(address.render_as_string(hide_password=False))
            finally:
                server.shutdown()

    def test_a_host_that_nobody_knows_is_an_outage(self, url: str) -> None:
        address = make_url(url).set(host="no-such-host.invalid")
        with pytest.raises(UnavailableError, match=r"does not answer.*no-such-host"):
            Catalog.open(address.render_as_string(hide_password=False))

    def test_a_server_without_tls(self, url: str) -> None:
        with pytest.raises(SettingsError, match="by TLS as asked"):
            Catalog.open(f"{url}?sslmode=require")


class TestSqlite:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "catalog.db"

    @pytest.fixture
    def catalog(self, path: Path) -> Iterator[Catalog]:
        opened = Catalog.open(f"sqlite:///{path}")
        yield opened
        opened.close()

    def test_a_full_disk_fails_at_once(self, catalog: Catalog) -> None:
        with (
            pytest.raises(RefusedError, match=r"no room left.*full.*free space"),
            catalog.database.writing() as session,
        ):
            session.execute(text("PRAGMA max_page_count = 1"))  # as many as there are, and no more
            session.execute(text("CREATE TABLE large AS SELECT randomblob(1000000)"))

    def test_a_file_that_may_not_be_written(self, catalog: Catalog) -> None:
        with (
            pytest.raises(RefusedError, match=r"read-only.*may be written"),
            catalog.database.writing() as session,
        ):
            session.execute(text("PRAGMA query_only = ON"))
            session.execute(text("DELETE FROM nodes"))

    def test_a_damaged_file(self, catalog: Catalog, path: Path) -> None:
        catalog.close()
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xa5" * (len(data) - 4096)
        path.write_bytes(data)
        with pytest.raises(RefusedError, match=r"damaged.*malformed.*backup"):
            Catalog.open(f"sqlite:///{path}")

    def test_a_file_that_is_no_database(self, path: Path) -> None:
        path.write_bytes(b"these are notes, not a database, " * 40)
        with pytest.raises(RefusedError, match=r"catalog\.db.*no database"):
            Catalog.open(f"sqlite:///{path}")

    def test_a_folder_in_its_place(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(RefusedError, match="cannot be opened"):
            Catalog.open(f"sqlite:///{path}")

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(RefusedError, match="file cannot be made"):
            Catalog.open(f"sqlite:///{tmp_path}/file/catalog.db")

    def test_a_file_that_another_program_holds_is_worth_another_try(
        self, catalog: Catalog, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        catalog.close()
        monkeypatch.setattr(database, "_BUSY_TIMEOUT_S", 0)
        impatient = Catalog.open(f"sqlite:///{path}")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(UnavailableError, match=r"is busy.*locked"):
                impatient.begin_run("ingest", {})
        assert impatient.begin_run("ingest", {}) == 1
        impatient.close()

    def test_a_dropped_table(self, catalog: Catalog) -> None:
        with catalog.database.writing() as session:
            session.execute(text("DROP TABLE claims"))
        with pytest.raises(RefusedError, match=r"lacks a table.*claims"):
            catalog.release_all("me")

    def test_a_dropped_column_reads_and_writes_alike(self, catalog: Catalog) -> None:
        run_id = catalog.begin_run("ingest", {})
        with catalog.database.writing() as session:
            session.execute(text("ALTER TABLE run_outcomes DROP COLUMN detail"))
        with pytest.raises(RefusedError, match=r"lacks a table, a column.*detail"):
            catalog.note_outcome(run_id, CaseOutcome("CASE", Outcome.DONE))
        with pytest.raises(RefusedError, match=r"lacks a table, a column.*detail"):
            catalog.outcomes_of(run_id)

    def test_a_statement_that_is_wrong_is_a_bug(self, catalog: Catalog) -> None:
        with pytest.raises(Exception, match="syntax error") as caught, catalog.database.reading() as session:
            session.execute(text("SELEKT 1"))
        assert type(caught.value).__name__ == "OperationalError"
