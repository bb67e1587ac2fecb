"""The catalog: what exists, what was done, what is left. Every step asks it, none keeps its own list."""

from __future__ import annotations

from retroln.catalog.claims import ClaimQueries
from retroln.catalog.database import Database, open_database
from retroln.catalog.deliveries import DeliveryQueries
from retroln.catalog.identity import IdentityQueries
from retroln.catalog.intakes import IntakeQueries
from retroln.catalog.landmark_reviews import LandmarkReviewQueries
from retroln.catalog.ledger import LedgerQueries
from retroln.catalog.predictions import PredictionQueries
from retroln.catalog.preparation import PreparationQueries
from retroln.catalog.runs import RunQueries
from retroln.catalog.scans import ScanQueries
from retroln.catalog.withdrawals import WithdrawalQueries


class Catalog(
    RunQueries,
    LedgerQueries,
    ScanQueries,
    IntakeQueries,
    DeliveryQueries,
    IdentityQueries,
    ClaimQueries,
    PreparationQueries,
    LandmarkReviewQueries,
    PredictionQueries,
    WithdrawalQueries,
):
    """All queries over one database; safe to share between threads, one per process.

    Each method is one transaction and returns frozen records. Besides the errors it names, every method
    may raise `UnavailableError` (the database does not answer), `RefusedError` (it cannot do it: no room,
    read-only; see `refusals`) and `ConflictError`.
    """

    def __init__(self, database: Database, owner: str | None = None) -> None:
        self._database = database
        self._owner = owner

    @classmethod
    def open(cls, url: str, password: str | None = None) -> Catalog:
        """Open the catalog at a SQLite or PostgreSQL URL.

        A SQLite file, its folder included, is made and migrated. Errors: see `database.open_database`.
        """
        return cls(open_database(url, password))

    def of_worker(self, owner: str | None) -> Catalog:
        """The same catalog in a worker's hands: what it records of a scan needs a claim of `owner` on it.

        Then `record_prepared`, `hold_landmarks`, `record_prediction`, `quarantine` and `fail` may raise
        `LeaseError`. None asks for no claim.
        """
        return Catalog(self._database, owner)

    @property
    def database(self) -> Database:
        """The connection, for maintenance."""
        return self._database

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()
