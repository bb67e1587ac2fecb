"""What a database's error means: away for a while, or wrong until a person mends it.

PostgreSQL says it by SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), SQLite by
result code (https://www.sqlite.org/rescode.html). An error without a meaning here is a bug.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError

from retroln.errors import (
    ConflictError,
    Meaning,
    NotFoundError,
    RefusedError,
    SettingsError,
    UnavailableError,
)

AWAY = Meaning(UnavailableError, "does not answer", "check that the database runs, then try again")
BUSY = Meaning(UnavailableError, "is busy", "try again; if it stays so, look for what holds it")
ADDRESS = Meaning(
    SettingsError,
    "cannot be reached as its address asks",
    "mend RETROLN_CATALOG_URL: its host, its port, or what follows the '?'",
)
LOGIN = Meaning(SettingsError, "refused the login", "mend RETROLN_CATALOG_URL or RETROLN_CATALOG_PASSWORD")
NO_DATABASE = Meaning(
    NotFoundError, "is in no such database", "create the database, or mend RETROLN_CATALOG_URL"
)
NO_RIGHT = Meaning(
    SettingsError,
    "does not let this login do that",
    "use the login that owns the tables (RETROLN_CATALOG_URL), or grant it the right",
)
TLS = Meaning(
    SettingsError,
    "cannot be reached by TLS as asked",
    "mend the server's certificate, or sslmode and sslrootcert in RETROLN_CATALOG_URL",
)
OTHER_SCHEMA = Meaning(
    RefusedError,
    "lacks a table, a column or an index",
    "`retroln catalog` names its schema; restore what was dropped",
)
READ_ONLY = Meaning(
    RefusedError, "is read-only", "point RETROLN_CATALOG_URL to a database that may be written"
)
FULL = Meaning(RefusedError, "has no room left", "free space on the disk that holds it, or raise its limit")
LIMIT = Meaning(
    RefusedError, "is out of memory or at another limit", "give the database more; its own log says of what"
)
BROKEN = Meaning(
    RefusedError, "has a fault of its own", "look at the disk that holds it, and at the database's own log"
)
DAMAGED = Meaning(RefusedError, "is damaged, or no database", "restore it from a backup")
NOT_OPENED = Meaning(
    RefusedError, "cannot be opened", "check that its folder and file are there and may be read and written"
)
VALUE = Meaning(
    RefusedError, "cannot hold a value", "look for what is unusual in the case; if nothing is, report it"
)

_BY_SQLSTATE = {
    "08": AWAY,  # connection exceptions
    "22": VALUE,
    "25006": READ_ONLY,
    "25P03": AWAY,  # idle in a transaction for too long: the server ended it
    "25P04": BUSY,  # the transaction took too long
    "28": LOGIN,
    "3D": NO_DATABASE,
    "3F": OTHER_SCHEMA,
    "40": BUSY,  # serialization failure, deadlock: the other one is done by now
    "42501": NO_RIGHT,
    "42703": OTHER_SCHEMA,
    "42P01": OTHER_SCHEMA,
    "42P10": OTHER_SCHEMA,  # no unique index for what ON CONFLICT names
    "53": LIMIT,
    "53100": FULL,
    "53300": BUSY,  # too many connections
    "54": LIMIT,
    "55P03": BUSY,  # lock timeout
    "57014": BUSY,  # statement timeout
    "57P01": AWAY,  # ended by an administrator
    "57P02": AWAY,  # another process of the server crashed
    "57P03": AWAY,  # starting up or shutting down
    "57P04": NO_DATABASE,
    "57P05": AWAY,
    "58": BROKEN,
    "XX": BROKEN,
    "XX001": DAMAGED,
    "XX002": DAMAGED,
}

# libpq gives no SQLSTATE for a connection that was never made; a server that speaks another language than
# English is taken for one that is away. The first that fits counts
_BY_WORDS = {
    "too many connections": BUSY,
    "too many clients": BUSY,
    "connection slots": BUSY,
    "not currently accepting connections": AWAY,
    "authentication failed": LOGIN,
    "no password supplied": LOGIN,
    "empty password": LOGIN,
    "no pg_hba.conf entry": LOGIN,
    "authentication method": LOGIN,
    "authentication not supported": LOGIN,
    "channel binding": LOGIN,
    "user name specified": LOGIN,
    "is not permitted to log in": LOGIN,
    'role "': LOGIN,
    "permission denied for database": NO_RIGHT,
    'database "': NO_DATABASE,
    "certificate": TLS,
    "private key": TLS,
    "does not support SSL": TLS,
    "unsupported protocol": TLS,
    " alert ": TLS,  # one side told the other why it will not go on
    "failed: Permission denied": NOT_OPENED,  # a socket in a folder that this user may not enter
    'value: "': ADDRESS,  # of sslmode, target_session_attrs and their like
    "invalid integer value": ADDRESS,
    "invalid port number": ADDRESS,
    "invalid connection option": ADDRESS,
    "bad value for connect_timeout": ADDRESS,
    "weak sslmode": ADDRESS,
    "could not parse network address": ADDRESS,
    "could not match": ADDRESS,  # so many hosts with so many ports
    "definition of service": ADDRESS,
    "service file": ADDRESS,
    "socket path": ADDRESS,  # too long
    "requirepeer": ADDRESS,
    "GSSAPI encryption": ADDRESS,
    'parameter "': ADDRESS,  # of `options`
    "invalid command-line argument": ADDRESS,
    "invalid response to": ADDRESS,  # another service listens there
    "expected authentication request": ADDRESS,
}

_BY_RESULT_CODE = {
    "AUTH": NO_RIGHT,
    "BUSY": BUSY,
    "CANTOPEN": NOT_OPENED,
    "CORRUPT": DAMAGED,
    "FULL": FULL,
    "IOERR": BROKEN,
    "LOCKED": BUSY,
    "MISMATCH": VALUE,
    "NOLFS": LIMIT,
    "NOMEM": LIMIT,
    "NOTADB": DAMAGED,
    "PERM": NOT_OPENED,
    "PROTOCOL": BUSY,  # processes raced for a lock
    "READONLY": READ_ONLY,
    "TOOBIG": VALUE,
}


# SQLite has one code for these and for statements that are wrong
_NO_SUCH = re.compile(
    r"no such (table|column)|table \S+ has no column|ON CONFLICT clause does not match|foreign key mismatch"
)


def without_password(url: URL) -> str:
    """A database's address as messages may have it: without a password."""
    return url.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Raise what the catalog's database refuses, or why it does not answer, as a `UserError` naming `url`."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        line = _first_line(error)
        if isinstance(error, IntegrityError) or "append-only" in line:
            raise ConflictError("the catalog refused", file=without_password(url), got=line) from error
        meaning = meaning_of(error)
        if meaning is None:
            raise
        raise meaning.error("the catalog", file=without_password(url), got=line) from error


def meaning_of(error: DBAPIError | sqlite3.Error) -> Meaning | None:
    """What an error of PostgreSQL or SQLite means; None for what is no matter of the database's state."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause)
    if sqlstate := getattr(cause, "sqlstate", None):
        return _BY_SQLSTATE.get(sqlstate) or _BY_SQLSTATE.get(sqlstate[:2])
    return _without_sqlstate(error, str(cause))


def _of_sqlite(cause: sqlite3.Error) -> Meaning | None:
    """By the primary result code: SQLITE_BUSY_SNAPSHOT counts as SQLITE_BUSY."""
    name = getattr(cause, "sqlite_errorname", "")
    if name == "SQLITE_ERROR" and _NO_SUCH.match(str(cause)):
        return OTHER_SCHEMA
    return _BY_RESULT_CODE.get(name.removeprefix("SQLITE_").partition("_")[0])


def _without_sqlstate(error: DBAPIError | sqlite3.Error, text: str) -> Meaning | None:
    """Said by the driver: the connection was refused, never made, or broke; or a value does not fit."""
    kind = type(error).__name__
    meaning = next((meaning for words, meaning in _BY_WORDS.items() if words in text), None)
    if kind == "OperationalError":
        return meaning or AWAY
    if kind == "ProgrammingError" and meaning is ADDRESS:
        return ADDRESS
    if kind == "DataError":
        return VALUE
    return AWAY if getattr(error, "connection_invalidated", False) else None


def _first_line(error: DBAPIError | sqlite3.Error) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (str(cause).splitlines() or [""])[0]
