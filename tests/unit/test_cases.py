"""Every case ends in one outcome, also when its process dies."""

from __future__ import annotations

import os
import signal

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.steps.cases import run_cases


def _work(item: str) -> CaseOutcome:
    if item == "raises":
        raise RuntimeError("boom")
    if item == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return CaseOutcome(item, Outcome.DONE)


def test_error_becomes_a_failed_outcome_and_the_rest_goes_on() -> None:
    outcomes = {o.case_id: o for o in run_cases(_work, ["a", "raises", "b"], case_id=str)}
    assert outcomes["raises"].outcome is Outcome.FAILED
    assert outcomes["raises"].detail == "RuntimeError: boom"
    assert outcomes["a"].outcome is outcomes["b"].outcome is Outcome.DONE


def test_killed_process_fails_its_own_case_alone() -> None:
    items = ["a", "dies", "b", "c"]
    seen: list[CaseOutcome] = []
    outcomes = {
        o.case_id: o for o in run_cases(_work, items, case_id=str, processes=2, on_outcome=seen.append)
    }
    assert set(outcomes) == set(items)
    assert len(seen) == len(items)
    assert (outcomes["dies"].outcome, outcomes["dies"].reason) == (Outcome.FAILED, "process_died")
    assert all(outcomes[name].outcome is Outcome.DONE for name in ("a", "b", "c"))
