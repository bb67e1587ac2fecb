"""Every case ends in one outcome, also when its process dies."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.errors import UnavailableError
from retroln.machine import cores
from retroln.steps import cases, outages
from retroln.steps.cases import run_cases


def _work(item: str) -> CaseOutcome:
    if item == "raises":
        raise RuntimeError("boom")
    if item == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return CaseOutcome(item, Outcome.DONE)


def _dies_while_others_work(released: Path, item: str) -> CaseOutcome:
    """Cases beside the one that dies are not done before their pool is given up."""
    if item == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    while not released.exists():
        time.sleep(0.01)
    return CaseOutcome(item, Outcome.DONE)


def _threads(item: str) -> CaseOutcome:
    return CaseOutcome(item, Outcome.DONE, detail=os.environ["OMP_NUM_THREADS"])


def test_processes_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    alone = run_cases(_threads, ["a", "b"], case_id=str)
    side_by_side = run_cases(_threads, ["a", "b"], case_id=str, processes=2)
    assert {outcome.detail for outcome in alone} == {"4096"}
    assert {outcome.detail for outcome in side_by_side} == {str(max(1, cores() // 2))}


def test_error_becomes_a_failed_outcome_and_the_rest_goes_on() -> None:
    outcomes = {o.case_id: o for o in run_cases(_work, ["a", "raises", "b"], case_id=str)}
    assert outcomes["raises"].outcome is Outcome.FAILED
    assert outcomes["raises"].detail == "boom"
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


def test_a_death_costs_the_cases_in_hand_a_process_each_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pools: list[int] = []
    pool_of, released = cases._pool, tmp_path / "released"

    def counted(processes: int) -> ProcessPoolExecutor:
        if pools:
            released.touch()
        pools.append(processes)
        return pool_of(processes)

    monkeypatch.setattr(cases, "_pool", counted)
    items = ["dies", *(str(number) for number in range(20))]
    work = partial(_dies_while_others_work, released)
    outcomes = {o.case_id: o.reason for o in run_cases(work, items, case_id=str, processes=2)}
    assert outcomes == dict.fromkeys(items) | {"dies": "process_died"}
    assert pools.count(2) == 2
    assert 1 <= pools.count(1) <= 5


def test_a_case_waits_for_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "_FIRST_PAUSE_S", 0.001)
    calls: list[str] = []

    def work(item: str) -> CaseOutcome:
        calls.append(item)
        if calls.count("b") in (1, 2):
            raise UnavailableError("the store does not answer")
        return CaseOutcome(item, Outcome.DONE)

    outcomes = run_cases(work, ["a", "b", "c"], case_id=str, patience_s=30.0)
    assert [one.outcome for one in outcomes] == [Outcome.DONE] * 3
    assert calls == ["a", "b", "b", "b", "c"]


def _leave_a_mark(folder: Path, item: str) -> CaseOutcome:
    time.sleep(0.1)
    (folder / item).touch()
    return CaseOutcome(item, Outcome.DONE)


@pytest.mark.parametrize("processes", [1, 2])
def test_cases_that_have_not_begun_stay_when_the_pass_ends(tmp_path: Path, processes: int) -> None:
    def refuse(outcome: CaseOutcome) -> None:
        raise RuntimeError("no more")

    items = [str(number) for number in range(30)]
    with pytest.raises(RuntimeError, match="no more"):
        run_cases(
            partial(_leave_a_mark, tmp_path), items, case_id=str, processes=processes, on_outcome=refuse
        )
    assert 1 <= len(list(tmp_path.iterdir())) <= 10
