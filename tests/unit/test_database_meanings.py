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
        ("42P10", "OTHER_SCHEMA"),
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
        ("FATAL:  empty password returned by client", "LOGIN"),
        ("authentication method 10 not supported", "LOGIN"),
        ("GSSAPI authentication not supported", "LOGIN"),
        ('authentication method requirement "gss" failed: server requested a hashed password', "LOGIN"),
        ("channel binding required, but SSL not in use", "LOGIN"),
        ("FATAL:  no PostgreSQL user name specified in startup packet", "LOGIN"),
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
        ('root certificate file "/a" does not exist; or change sslmode', "TLS"),
        ('private key file "/a" has group or world access', "TLS"),
        ("SSL error: unsupported protocol", "TLS"),
        ("SSL error: ssl/tls alert handshake failure", "TLS"),
        ('connection to server on socket "/a/.s.PGSQL.5432" failed: Permission denied', "NOT_OPENED"),
        ('invalid sslmode value: "bogus"', "ADDRESS"),
        ('invalid "ssl_min_protocol_version" value: "9"', "ADDRESS"),
        ('weak sslmode "prefer" may not be used with sslrootcert=system', "ADDRESS"),
        ('invalid integer value "abc" for connection option "keepalives"', "ADDRESS"),
        ('invalid port number: "99999"', "ADDRESS"),
        ('could not parse network address "a": Name or service not known', "ADDRESS"),
        ("could not match 1 host names with 2 hostaddr values", "ADDRESS"),
        ('definition of service "a" not found', "ADDRESS"),
        ('service file "/a" not found', "ADDRESS"),
        ('Unix-domain socket path "/a" is too long (maximum 107 bytes)', "ADDRESS"),
        ('requirepeer specifies "a", but actual peer user name is "b"', "ADDRESS"),
        ("GSSAPI encryption required but no credential cache", "ADDRESS"),
        ('FATAL:  unrecognized configuration parameter "a"', "ADDRESS"),
        ('FATAL:  invalid value for parameter "client_encoding": "a"', "ADDRESS"),
        ("FATAL:  invalid command-line argument for server process: -a", "ADDRESS"),
        ("received invalid response to SSL negotiation: H", "ADDRESS"),
        ("expected authentication request from server, but received H", "ADDRESS"),
        ("Connection refused", "AWAY"),
        ("server closed the connection unexpectedly", "AWAY"),
        ("failed to resolve host 'db.example.org': [Errno -3] Temporary failure", "AWAY"),
        ("failed to resolve host 'db.example.org': [Errno -2] Name or service not known", "AWAY"),
        ('connection to server on socket "/a/.s.PGSQL.5432" failed: No such file or directory', "AWAY"),
        ("session is read-only", "AWAY"),  # target_session_attrs, while the primary changes
        ("invalid socket", "AWAY"),
        ("SSL error: unexpected eof while reading", "AWAY"),
    ],
)
def test_what_a_connection_that_was_never_made_says(words: str, meaning: str) -> None:
    assert meaning_of(_wrapped(psycopg.OperationalError(words))) is getattr(refusals, meaning)


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ('invalid connection option "foo"', "ADDRESS"),
        ("bad value for connect_timeout: 'abc'", "ADDRESS"),
        ("the query has 2 placeholders but 1 parameters were passed", None),  # a bug
        ("cannot adapt type 'certificate' using placeholder '%s'", None),
    ],
)
def test_what_psycopg_says_of_options_that_it_does_not_have(words: str, meaning: str | None) -> None:
    wanted = getattr(refusals, meaning) if meaning else None
    assert meaning_of(_wrapped(psycopg.ProgrammingError(words))) is wanted


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("no such table: runs", "OTHER_SCHEMA"),
        ("no such column: runs.flow", "OTHER_SCHEMA"),
        ("table run_outcomes has no column named detail", "OTHER_SCHEMA"),
        ("ON CONFLICT clause does not match any PRIMARY KEY or UNIQUE constraint", "OTHER_SCHEMA"),
        ('foreign key mismatch - "nodes" referencing "scans"', "OTHER_SCHEMA"),
        ('near "SELEKT": syntax error', None),
        ("no such function: now", None),
    ],
)
def test_what_sqlite_says_under_its_code_for_everything_else(words: str, meaning: str | None) -> None:
    cause = sqlite3.OperationalError(words)
    cause.sqlite_errorname = "SQLITE_ERROR"
    assert meaning_of(_wrapped(cause)) is (getattr(refusals, meaning) if meaning else None)


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
