"""The sum that every run must reach: cases in = done + skipped + quarantined + failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from retroln.errors import RetroLNError


class Outcome(StrEnum):
    """How one case left a run."""

    DONE = "done"
    SKIPPED = "skipped"
    QUARANTINED = "quarantined"
    FAILED = "failed"


class AccountingError(RetroLNError):
    """A run lost a case or counted one twice: always a bug, never a user's mistake."""


@dataclass(frozen=True)
class CaseOutcome:
    """What became of one case.

    Attributes:
        reason: stable code (snake case) of a quarantine or failure.
        detail: the message a person reads.
    """

    case_id: str
    outcome: Outcome
    reason: str | None = None
    detail: str | None = None

    @property
    def line(self) -> str:
        """As lists and logs name a case that was held or failed."""
        return f"{self.case_id} {self.outcome.value} ({self.reason}): {self.detail}"


@dataclass(frozen=True)
class Accounting:
    """Counts of one run; an instance that exists is balanced."""

    n_in: int
    done: int = 0
    skipped: int = 0
    quarantined: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        counts = (self.n_in, self.done, self.skipped, self.quarantined, self.failed)
        if min(counts) < 0 or self.n_in != sum(counts[1:]):
            raise AccountingError(f"accounting does not balance: {self.to_dict()}")

    @classmethod
    def of(cls, outcomes: Iterable[CaseOutcome], n_in: int) -> Accounting:
        """Count outcomes.

        Raises:
            AccountingError: a case has two outcomes, or they do not add up to `n_in`.
        """
        listed = list(outcomes)
        twice = [case for case, times in Counter(item.case_id for item in listed).items() if times > 1]
        if twice:
            raise AccountingError(f"cases with more than one outcome: {', '.join(sorted(twice)[:10])}")
        counts = Counter(item.outcome for item in listed)
        return cls(n_in, **{outcome.value: counts[outcome] for outcome in Outcome})

    def __add__(self, other: Accounting) -> Accounting:
        """The accounting of two shards together."""
        return Accounting(
            self.n_in + other.n_in,
            self.done + other.done,
            self.skipped + other.skipped,
            self.quarantined + other.quarantined,
            self.failed + other.failed,
        )

    def to_dict(self) -> dict[str, int]:
        """Counts by name; the number of cases in is called "in"."""
        return {
            "in": self.n_in,
            "done": self.done,
            "skipped": self.skipped,
            "quarantined": self.quarantined,
            "failed": self.failed,
        }
