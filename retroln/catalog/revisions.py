"""Which schema the catalog's database has, which one this RetroLN works with, and the way there."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from retroln.catalog.refusals import without_password
from retroln.errors import UserError

WANTED = "0011"
"""The newest of the migrations beside this file; stated, so that opening the catalog need not load them."""

_TABLE = "alembic_version"
_LOCK = 0x526574726F4C4E  # "RetroLN"; PostgreSQL advisory lock


def read_revision(connection: Connection) -> str | None:
    """The schema's revision; None where there is no catalog yet."""
    if not inspect(connection).has_table(_TABLE):
        return None
    return str(connection.scalar(text(f"SELECT version_num FROM {_TABLE}")))


def require_wanted(engine: Engine) -> None:
    """Refuse a database that this RetroLN must not work with as it is.

    Raises:
        UserError: its schema is older or newer, there is none, or it is another program's.
    """
    shown = without_password(engine.url)
    with engine.connect() as connection:
        found = read_revision(connection)
    if found == WANTED:
        return
    _refuse_unknown(found, shown)
    wanted = f"schema {WANTED}"
    if found is None:
        fix = "`retroln catalog upgrade` makes its tables"
        raise UserError(
            "the database holds no catalog yet", file=shown, expected=wanted, got="no tables of it", fix=fix
        )
    raise UserError(
        "the catalog's schema is older than this RetroLN",
        file=shown,
        expected=wanted,
        got=f"schema {found}",
        fix="back up, stop the workers, then `retroln catalog upgrade`",
    )


def upgrade(engine: Engine) -> str | None:
    """Bring the schema to `WANTED` in one transaction that others wait for, and return what it was.

    Whoever comes second finds it done and changes nothing.

    Raises:
        UserError: the schema is newer, or another program's.
    """
    with engine.execution_options(immediate=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        before = read_revision(connection)
        if before != WANTED:
            _refuse_unknown(before, without_password(engine.url))
            _migrate(connection)
    return before


def _refuse_unknown(found: str | None, shown: str) -> None:
    """RetroLN numbers its revisions; other programs that use Alembic name theirs by hashes."""
    if found is None or (_is_number(found) and found < WANTED):
        return
    wanted, got = f"schema {WANTED} or older", f"schema {found}"
    if _is_number(found):
        fix = "install the newer RetroLN that upgraded it"
        what = "the catalog was made by another version of RetroLN"
    else:
        fix = "point RETROLN_CATALOG_URL to a database of its own"
        what = "the database holds another program's tables"
    raise UserError(what, file=shown, expected=wanted, got=got, fix=fix)


def _is_number(revision: str) -> bool:
    return len(revision) == len(WANTED) and revision.isdigit()


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, WANTED)
