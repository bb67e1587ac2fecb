"""Connections and transactions, for SQLite and PostgreSQL alike."""

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

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from retroln.catalog import revisions
from retroln.catalog.refusals import BUSY, meaning_of, translated, without_password
from retroln.errors import MissingExtraError, RefusedError, SettingsError
from retroln.files import ensure_file

_BUSY_TIMEOUT_S = 60


class Database:
    """An engine on a catalog of the wanted schema, with one transaction per block."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(immediate=True)
        _dispose_after_fork(engine)
        weakref.finalize(self, engine.dispose)  # a database that is forgotten gives its connections back

    @property
    def engine(self) -> Engine:
        """For inspection and maintenance; queries belong into the catalog's methods."""
        return self._engine

    @property
    def address(self) -> str:
        """Which catalog this is, as messages may have it: without a password."""
        return without_password(self._engine.url)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent read transaction."""
        with translated(self._engine.url), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One write transaction: all of it or nothing. On SQLite it waits for its turn at the start."""
        with translated(self._engine.url), Session(self._writer) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


def open_database(url: str, password: str | None = None) -> Database:
    """Connect to a catalog whose schema is the wanted one; many processes may do so at once.

    A SQLite file is made and migrated first. On PostgreSQL `upgrade_database` alone does that.

    Args:
        url: the database's address.
        password: used when the URL names a user and holds none.

    Raises:
        SettingsError: the URL is unusable, or the server refuses the login or cannot be reached as asked.
        MissingExtraError: PostgreSQL without psycopg.
        UnavailableError: the server does not answer.
        RefusedError: the file cannot be made, the disk is full; see `refusals`.
        UserError: the schema is older or newer than this RetroLN's, or another program's.
    """
    engine = _connect(url, password)
    with _kept_if_well(engine):
        if engine.dialect.name == "sqlite":
            _use_write_ahead_log(engine)
            if _revision(engine) != revisions.WANTED:
                revisions.upgrade(engine)
        else:
            revisions.require_wanted(engine)
    return Database(engine)


def upgrade_database(url: str, password: str | None = None) -> str | None:
    """Make or migrate the catalog's tables, whatever the database, and return the revision before.

    Of many who do so at once one does it; the others wait and find it done. Errors: as `open_database`.
    """
    engine = _connect(url, password)
    with _kept_if_well(engine):
        if engine.dialect.name == "sqlite":
            _use_write_ahead_log(engine)
        before = revisions.upgrade(engine)
    engine.dispose()
    return before


def revision_at(url: str, password: str | None = None) -> str | None:
    """The revision of the catalog's schema, or None; migrates nothing. Errors: as `open_database`."""
    engine = _connect(url, password)
    with _kept_if_well(engine):
        found = _revision(engine)
    engine.dispose()
    return found


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return revisions.read_revision(connection)


def _connect(url: str, password: str | None) -> Engine:
    address = _address(url)
    _require_usable(address)
    if address.username and address.password is None and password is not None:
        address = address.set(password=password)
    if address.get_backend_name() == "sqlite" and address.database not in (None, "", ":memory:"):
        _create_file(Path(str(address.database)))
    return _create_engine(address)


@contextmanager
def _kept_if_well(engine: Engine) -> Iterator[None]:
    """A block that opens a database: after an error no connection stays."""
    try:
        with translated(engine.url):
            yield
    except BaseException:
        engine.dispose()
        raise


def _address(url: str) -> URL:
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):  # whose text may quote a piece of the password
        raise _unusable("not a database address") from None
    if address.drivername in ("postgresql", "postgres"):
        address = address.set(drivername="postgresql+psycopg")
    if address.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise _unusable(address.drivername)
    return address


def _require_usable(address: URL) -> None:
    """Refuse what no driver can make anything of, before one is asked.

    Raises:
        SettingsError: an option has no such value, a host cannot be one, or an @ of the password was not
            written as %40.
    """
    if "@" in (address.host or ""):
        raise _unusable("more than one '@'")
    try:
        (address.host or "").encode("idna")
        address.get_dialect()().create_connect_args(address)
    except (ArgumentError, ValueError) as error:
        raise _unusable(str(error).splitlines()[0]) from error


def _unusable(got: str) -> SettingsError:
    return SettingsError(
        "the catalog cannot use this address",
        expected="sqlite:///folder/catalog.db or postgresql://user:password@host/database",
        got=got,
        fix="mend RETROLN_CATALOG_URL; in a password write @ as %40 and % as %25",
    )


def _create_file(path: Path) -> None:
    try:
        ensure_file(path)
    except OSError as error:
        fix = "choose a place that can be written in RETROLN_CATALOG_URL"
        raise RefusedError("the catalog's file cannot be made", file=path, got=str(error), fix=fix) from error


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
        except (sqlite3.Error, DBAPIError) as error:
            if meaning_of(error) is not BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _dispose_after_fork(engine: Engine) -> None:
    """A forked child must not speak over its parent's connections."""
    reference = weakref.ref(engine)

    def forget() -> None:
        if (inherited := reference()) is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=forget)
