"""What flows and tasks share: the settings in use, and listeners for progress on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from prefect.logging import get_run_logger

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.settings import Settings

listeners: list[Callable[[Any], None]] = []
"""Called in this process with every `CaseOutcome` and every epoch's figures: progress on a terminal."""

_given: ContextVar[Settings | None] = ContextVar("settings", default=None)


def settings_in_use() -> Settings:
    """The settings of `using`, else those of the environment, as a worker's flow run has them.

    Settings are no parameters of flows: Prefect stores parameters, and settings hold passwords.
    """
    return _given.get() or Settings()


@contextmanager
def using(settings: Settings) -> Iterator[None]:
    """Run flows of this process with the given settings."""
    token = _given.set(settings)
    try:
        yield
    finally:
        _given.reset(token)


def publish(event: Any) -> None:
    """Hand an event to every listener."""
    for listener in listeners:
        listener(event)


def log_outcome(outcome: CaseOutcome) -> None:
    """Tell listeners, and name a case that was held back or failed in the run's log."""
    publish(outcome)
    if outcome.outcome in (Outcome.QUARANTINED, Outcome.FAILED):
        get_run_logger().warning("%s", outcome.line)


def log_epoch(epoch: dict[str, Any]) -> None:
    """Tell listeners, and write the epoch's figures to the run's log."""
    publish(epoch)
    figures = ", ".join(f"{k} {v:.3g}" for k, v in epoch.items() if isinstance(v, float))
    get_run_logger().info(
        "fold %s epoch %s/%s: %s", epoch["fold"], epoch["epoch"] + 1, epoch["epochs"], figures
    )
