"""A run and its accounting: cases in = done + skipped + quarantined + failed, stored and asserted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from retroln.catalog.accounting import Accounting, CaseOutcome
from retroln.errors import RetroLNError
from retroln.settings import Settings
from retroln.steps.workspace import open_workspace


@dataclass(frozen=True)
class Run:
    """One pass of a step, from its beginning to its balanced end.

    As a context manager it records a pass that an error cut short as failed, without counts.
    """

    settings: Settings
    run_id: int

    @classmethod
    def begin(
        cls, settings: Settings, flow: str, parameters: dict[str, Any], external_id: str | None = None
    ) -> Run:
        """Record that a run began; `external_id` is the orchestrator's own id, if there is one."""
        catalog = open_workspace(settings).catalog
        return cls(settings, catalog.begin_run(flow, parameters, external_id=external_id))

    def finish(self, outcomes: Sequence[CaseOutcome], n_in: int | None = None) -> Accounting:
        """Store the accounting; raises if it does not balance against `n_in` (default: all outcomes)."""
        accounting = Accounting.of(outcomes, len(outcomes) if n_in is None else n_in)
        state = "failed" if accounting.failed else "completed"
        open_workspace(self.settings).catalog.finish_run(self.run_id, accounting, state)
        return accounting

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            # a pass that counted itself before stays as it is, and a catalog that is gone hides no error
            with suppress(RetroLNError):
                open_workspace(self.settings).catalog.finish_run(self.run_id, None, "failed")
