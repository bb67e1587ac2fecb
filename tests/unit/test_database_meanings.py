"""What databases say about their state, by code: which of it is worth another try."""

import sqlite3

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from retroln.catalog import refusals
from retroln.catalog.refusals import meaning_of


def _wrapped(cause: Exception, invalidated: bool = False) -> DBAPIError:
    made = DBAPIError.instance(
        None, None, cause, psycopg.Error if isinstance(cause, psycopg.Error) else sqlite3.Error
    )
    assert isinstance(made, DBAPIError)
    made.connection_invalidated = invalidated
    return made


@pytest.mark.parametrize(
    ("sqlstate", "meaning"),
    [
        ("08000", "AWAY"),
        ("08006", "AWAY"),
        ("22001", "VALUE"),
        ("22P05", "VALUE"),
        ("25006", "READ_ONLY"),
        ("25P03", "AWAY"),
        ("28000", "LOGIN"),
        ("28P01", "LOGIN"),
        ("3D000", "NO_DATABASE"),
        ("3F000", "OTHER_SCHEMA"),
        ("40001", "BUSY"),
        ("40P01", "BUSY"),
        ("42501", "NO_RIGHT"),
        ("42703", "OTHER_SCHEMA"),
        ("42P01", "OTHER_SCHEMA"),
        ("53100", "FULL"),
        ("53200", "LIMIT"),
        ("53300", "BUSY"),
        ("53400", "LIMIT"),
        ("54000", "LIMIT"),
        ("55P03", "BUSY"),
        ("57014", "BUSY"),
        ("57P01", "AWAY"),
        ("57P02", "AWAY"),
        ("57P03", "AWAY"),
        ("57P04", "NO_DATABASE"),
        ("58030", "BROKEN"),
        ("XX000", "BROKEN"),
        ("XX001", "DAMAGED"),
        ("42601", None),  # a wrong statement is a bug
        ("0A000", None),
    ],
)
def test_what_postgresql_says(sqlstate: str, meaning: str | None) -> None:
    wanted = getattr(refusals, meaning) if meaning else None
    assert meaning_of(_wrapped(psycopg.errors.lookup(sqlstate)("said so"))) is wanted


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ('FATAL:  password authentication failed for user "app"', "LOGIN"),
        ('FATAL:  role "app" does not exist', "LOGIN"),
        ('FATAL:  role "app" is not permitted to log in', "LOGIN"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "app", database "app"', "LOGIN"),
        ("fe_sendauth: no password supplied", "LOGIN"),
        ('FATAL:  database "app" does not exist', "NO_DATABASE"),
        ('FATAL:  database "app" is not currently accepting connections', "AWAY"),
        ('FATAL:  permission denied for database "app"', "NO_RIGHT"),
        ("FATAL:  sorry, too many clients already", "BUSY"),
        ('FATAL:  too many connections for role "app"', "BUSY"),
        ("FATAL:  remaining connection slots are reserved for roles with SUPERUSER", "BUSY"),
        ("FATAL:  the database system is starting up", "AWAY"),
        ("FATAL:  the database system is shutting down", "AWAY"),
        ("SSL error: certificate verify failed", "TLS"),
        ('server certificate for "a" does not match host name "b"', "TLS"),
        ("server does not support SSL, but SSL was required", "TLS"),
        ("Connection refused", "AWAY"),
        ("server closed the connection unexpectedly", "AWAY"),
        ("failed to resolve host 'db.example.org': [Errno -3] Temporary failure", "AWAY"),
    ],
)
def test_what_a_connection_that_was_never_made_says(words: str, meaning: str) -> None:
    assert meaning_of(_wrapped(psycopg.OperationalError(words))) is getattr(refusals, meaning)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("SQLITE_BUSY", "BUSY"),
        ("SQLITE_BUSY_SNAPSHOT", "BUSY"),
        ("SQLITE_LOCKED", "BUSY"),
        ("SQLITE_PROTOCOL", "BUSY"),
        ("SQLITE_FULL", "FULL"),
        ("SQLITE_READONLY", "READ_ONLY"),
        ("SQLITE_READONLY_DIRECTORY", "READ_ONLY"),
        ("SQLITE_CANTOPEN", "NOT_OPENED"),
        ("SQLITE_CANTOPEN_ISDIR", "NOT_OPENED"),
        ("SQLITE_CORRUPT_INDEX", "DAMAGED"),
        ("SQLITE_NOTADB", "DAMAGED"),
        ("SQLITE_IOERR_WRITE", "BROKEN"),
        ("SQLITE_NOMEM", "LIMIT"),
        ("SQLITE_TOOBIG", "VALUE"),
        ("SQLITE_ERROR", None),
        ("SQLITE_MISUSE", None),
    ],
)
def test_what_sqlite_says(name: str, meaning: str | None) -> None:
    cause = sqlite3.OperationalError("said so")
    cause.sqlite_errorname = name
    wanted = getattr(refusals, meaning) if meaning else None
    assert meaning_of(_wrapped(cause)) is meaning_of(cause) is wanted


def test_a_connection_that_is_gone_is_an_outage_whoever_says_so() -> None:
    assert meaning_of(_wrapped(psycopg.InterfaceError("the connection is closed"), True)) is refusals.AWAY
    assert meaning_of(_wrapped(psycopg.InterfaceError("used wrongly"))) is None


def test_outages_are_those_and_no_others() -> None:
    waits = {
        name
        for name, value in vars(refusals).items()
        if getattr(value, "kind", None) is not None and value.kind.__name__ == "UnavailableError"
    }
    assert waits == {"AWAY", "BUSY"}
