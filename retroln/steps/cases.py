"""Run one function over many cases: every case ends in exactly one outcome, whatever happens."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from retroln.catalog.accounting import CaseOutcome, Outcome

Item = TypeVar("Item")
CaseFunction = Callable[[Item], CaseOutcome]
OnOutcome = Callable[[CaseOutcome], None]

log = logging.getLogger(__name__)


def run_cases(
    function: CaseFunction[Item],
    items: Sequence[Item],
    *,
    case_id: Callable[[Item], str],
    processes: int = 1,
    on_outcome: OnOutcome | None = None,
) -> list[CaseOutcome]:
    """Apply `function` to every item, in `processes` fresh processes, and return one outcome each.

    `function` quarantines what it understands. Anything else that escapes it becomes a failed outcome
    here; so does a process that dies (killed for memory, say), after its case was tried once alone.
    """
    notify = on_outcome or (lambda outcome: None)
    outcomes = []
    for outcome in _stream(function, items, case_id, processes):
        if outcome.outcome in (Outcome.QUARANTINED, Outcome.FAILED):
            log.info("%s %s: %s", outcome.case_id, outcome.outcome.value, outcome.detail)
        notify(outcome)
        outcomes.append(outcome)
    return outcomes


def _stream(
    function: CaseFunction[Item], items: Sequence[Item], case_id: Callable[[Item], str], processes: int
) -> Iterable[CaseOutcome]:
    if processes == 1 or len(items) < 2:
        for item in items:
            yield _guarded(function, item, case_id(item))
        return
    died = []
    with _pool(min(processes, len(items))) as pool:
        futures = {pool.submit(_guarded, function, item, case_id(item)): item for item in items}
        for future in as_completed(futures):
            if isinstance(future.exception(), BrokenProcessPool):
                died.append(futures[future])
            else:
                yield _result(future, case_id(futures[future]))
    for item in died:
        with _pool(1) as pool:
            yield _result(pool.submit(_guarded, function, item, case_id(item)), case_id(item))


def _pool(processes: int) -> ProcessPoolExecutor:
    # spawn: a forked child would share database connections and torch's threads
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def _result(future: Future[CaseOutcome], case_id: str) -> CaseOutcome:
    try:
        return future.result()
    except BrokenProcessPool:
        detail = "the process died, most likely for lack of memory; run it with fewer processes"
        return CaseOutcome(case_id, Outcome.FAILED, "process_died", detail)


def _guarded(function: CaseFunction[Item], item: Item, case_id: str) -> CaseOutcome:
    try:
        return function(item)
    except Exception as error:
        log.debug("case %s", case_id, exc_info=True)
        return CaseOutcome(case_id, Outcome.FAILED, type(error).__name__, f"{type(error).__name__}: {error}")
