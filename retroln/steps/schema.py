"""The catalog's schema: which one is there, and bringing it up to date on an operator's word."""

from __future__ import annotations

from typing import NamedTuple

from retroln.catalog import database
from retroln.catalog.revisions import WANTED
from retroln.settings import Settings


class Schema(NamedTuple):
    """The revision of the catalog's tables (None: none yet), and the one that this RetroLN works with."""

    present: str | None
    wanted: str

    @property
    def is_current(self) -> bool:
        """Whether nothing needs to be done."""
        return self.present == self.wanted


def read(settings: Settings) -> Schema:
    """Look, and change nothing. Errors: as `database.open_database`."""
    return Schema(database.revision_at(settings.catalog_url, _password(settings)), WANTED)


def upgrade(settings: Settings) -> Schema:
    """Make or migrate the tables, all or nothing, and return what was there before.

    Nothing that works with the older schema may run meanwhile. Errors: as `database.open_database`.
    """
    return Schema(database.upgrade_database(settings.catalog_url, _password(settings)), WANTED)


def _password(settings: Settings) -> str | None:
    return settings.catalog_password.get_secret_value() if settings.catalog_password else None
