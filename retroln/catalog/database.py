"""Connections, transactions and migration to head, for SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from retroln.errors import (
    ConflictError,
    MissingExtraError,
    RetroLNError,
    SettingsError,
    UnavailableError,
    UserError,
)

_BUSY_TIMEOUT_S = 60
_MIGRATION_LOCK = 0x526574726F4C4E  # "RetroLN"; PostgreSQL advisory lock


class Database:
    """An engine at head, with one transaction per block."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(immediate=True)
        _dispose_after_fork(engine)
        weakref.finalize(self, engine.dispose)  # a database that is forgotten gives its connections back

    @property
    def engine(self) -> Engine:
        """For inspection and maintenance; queries belong into the catalog's methods."""
        return self._engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent read transaction."""
        with _translated(self._engine.url), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One write transaction: all of it or nothing. On SQLite it waits for its turn at the start."""
        with _translated(self._engine.url), Session(self._writer) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


def open_database(url: str, password: str | None = None) -> Database:
    """Connect, create what is missing and migrate to head; many processes may do so at once.

    `password` is used when the URL names a user and holds none.

    Raises:
        SettingsError: the URL is unusable, or the server refuses the login.
        MissingExtraError: PostgreSQL without psycopg.
        UnavailableError: the server does not answer, or the folder cannot be written.
        UserError: the catalog was migrated by a newer RetroLN.
    """
    address = _address(url)
    if address.username and address.password is None and password is not None:
        address = address.set(password=password)
    if address.get_backend_name() == "sqlite" and address.database not in (None, "", ":memory:"):
        _create_parent(Path(str(address.database)))
    engine = _create_engine(address)
    try:
        with _translated(address):
            if address.get_backend_name() == "sqlite":
                _use_write_ahead_log(engine)
            _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return Database(engine)


def _address(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise _unusable("not a database address") from error
    if address.drivername in ("postgresql", "postgres"):
        address = address.set(drivername="postgresql+psycopg")
    if address.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise _unusable(address.drivername)
    return address


def _unusable(got: str) -> SettingsError:
    return SettingsError(
        "the catalog cannot use this address",
        expected="sqlite:///folder/catalog.db or postgresql://user:password@host/database",
        got=got,
        fix="mend RETROLN_CATALOG_URL",
    )


def _create_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError("the catalog's folder cannot be made", file=path, got=str(error)) from error


def _create_engine(address: URL) -> Engine:
    dumps = partial(json.dumps, allow_nan=False, default=_plain)
    sqlite_arguments = {"timeout": _BUSY_TIMEOUT_S} if address.get_backend_name() == "sqlite" else {}
    try:
        engine = create_engine(
            address, json_serializer=dumps, connect_args=sqlite_arguments, pool_pre_ping=True
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError("PostgreSQL needs psycopg", fix="pip install 'retroln[postgres]'") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot store {type(value).__name__} as JSON")


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # transactions begin in _begin_sqlite, DDL included
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _use_write_ahead_log(engine: Engine) -> None:
    """Readers then never wait for a writer. The switch itself ignores the busy timeout."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            with closing(engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            return
        except (sqlite3.DatabaseError, OperationalError) as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise UnavailableError(
                    "the catalog cannot be opened", file=engine.url.database, got=str(error)
                ) from error
            time.sleep(0.05)


def _migrate(engine: Engine) -> None:
    """Upgrade inside one transaction that others wait for; whoever comes second finds it done."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with engine.execution_options(immediate=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise UserError(
                "the catalog was made by another version of RetroLN",
                got=str(error),
                fix="install the newer RetroLN that last opened it",
            ) from error


def _dispose_after_fork(engine: Engine) -> None:
    """A forked child must not speak over its parent's connections."""
    reference = weakref.ref(engine)

    def forget() -> None:
        if (inherited := reference()) is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=forget)


@contextmanager
def _translated(url: URL) -> Iterator[None]:
    shown = url.render_as_string(hide_password=True)
    try:
        yield
    except RetroLNError:
        raise
    except IntegrityError as error:
        raise ConflictError("the catalog refused", file=shown, got=_first_line(error)) from error
    except OperationalError as error:
        raise _no_answer(error, shown) from error
    except DBAPIError as error:
        if "append-only" in str(error.orig):
            raise ConflictError("the catalog refused", file=shown, got=_first_line(error)) from error
        raise


def _no_answer(error: OperationalError, shown: str) -> UserError:
    line = _first_line(error)
    if "authentication failed" in line:
        return SettingsError(
            "the catalog refused the login",
            file=shown,
            fix="mend RETROLN_CATALOG_URL or RETROLN_CATALOG_PASSWORD",
        )
    fix = "check that the database runs and can be written, then try again"
    return UnavailableError("the catalog does not answer", file=shown, got=line, fix=fix)


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).splitlines() or [""])[0]
