"""Run one function over many cases: every case ends in exactly one outcome, whatever happens."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import TypeVar

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.files import naming_disk_refusals
from retroln.machine import share_threads
from retroln.steps.outages import riding_out

Item = TypeVar("Item")
CaseFunction = Callable[[Item], CaseOutcome]
OnOutcome = Callable[[CaseOutcome], None]

_IN_HAND = 2  # cases per process: one that is done, one that waits, so that no process does

log = logging.getLogger(__name__)


def run_cases(
    function: CaseFunction[Item],
    items: Sequence[Item],
    *,
    case_id: Callable[[Item], str],
    processes: int = 1,
    patience_s: float = 0.0,
    on_outcome: OnOutcome | None = None,
) -> list[CaseOutcome]:
    """Apply `function` to every item, in `processes` fresh processes, and return one outcome each.

    `function` quarantines what it understands. Anything else that escapes it becomes a failed outcome
    here; so does a process that dies (killed for memory, say), after its case was tried once alone. The
    other cases share one pool, which is started anew only after such a death.
    A case that meets a server that is away is tried again for `patience_s` seconds before it fails.
    An error of `on_outcome` ends the pass; cases that have not begun stay as they are.
    """
    outcomes = []
    with closing(_stream(function, items, case_id, processes, patience_s)) as stream:
        for outcome in stream:
            tell(outcome, on_outcome)
            outcomes.append(outcome)
    return outcomes


def tell(outcome: CaseOutcome, on_outcome: OnOutcome | None) -> None:
    """Log a case that was held or failed, and hand the outcome on."""
    if outcome.outcome in (Outcome.QUARANTINED, Outcome.FAILED):
        log.info("%s", outcome.line)
    if on_outcome:
        on_outcome(outcome)


def guarded(function: CaseFunction[Item], item: Item, case_id: str, patience_s: float = 0.0) -> CaseOutcome:
    """The function's outcome; a failed one, with the error's name as reason, for what escapes it."""

    @naming_disk_refusals()
    def attempt() -> CaseOutcome:
        return function(item)

    try:
        return riding_out(attempt, patience_s)
    except Exception as error:
        log.debug("case %s", case_id, exc_info=True)
        return CaseOutcome(case_id, Outcome.FAILED, type(error).__name__, str(error))


def _stream(
    function: CaseFunction[Item],
    items: Sequence[Item],
    case_id: Callable[[Item], str],
    processes: int,
    patience_s: float,
) -> Generator[CaseOutcome, None, None]:
    if processes == 1 or len(items) < 2:
        for item in items:
            yield guarded(function, item, case_id(item), patience_s)
        return
    waiting = deque(items)
    while waiting:
        died: list[Item] = []
        yield from _through_pool(function, waiting, case_id, processes, patience_s, died)
        for item in died:
            with _pool(1) as pool:
                alone = pool.submit(guarded, function, item, case_id(item), patience_s)
                yield _result(alone, case_id(item))


def _through_pool(
    function: CaseFunction[Item],
    waiting: deque[Item],
    case_id: Callable[[Item], str],
    processes: int,
    patience_s: float,
    died: list[Item],
) -> Generator[CaseOutcome, None, None]:
    """Take items from `waiting` until none is left, or a process dies: what was in hand is then in `died`."""
    in_hand: dict[Future[CaseOutcome], Item] = {}
    with _pool(min(processes, len(waiting))) as pool:
        try:
            while in_hand or (waiting and not died):
                # few at a time: with a process that dies all that was given out is lost
                while waiting and not died and len(in_hand) < _IN_HAND * processes:
                    item = waiting.popleft()
                    try:
                        in_hand[pool.submit(guarded, function, item, case_id(item), patience_s)] = item
                    except BrokenProcessPool:
                        died.append(item)
                for future in wait(in_hand, return_when=FIRST_COMPLETED).done:
                    item = in_hand.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        died.append(item)
                    else:
                        yield _result(future, case_id(item))
        finally:
            pool.shutdown(cancel_futures=True)


def _pool(processes: int) -> ProcessPoolExecutor:
    # spawn: a forked child would share database connections and torch's threads; Ctrl-C, which a shell sends
    # to every process, is for the parent alone: it takes no more cases and lets those in hand end
    return ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(processes,),
    )


def _begin(processes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    share_threads(processes)


def _result(future: Future[CaseOutcome], case_id: str) -> CaseOutcome:
    try:
        return future.result()
    except BrokenProcessPool:
        detail = "the process died, most likely for lack of memory; run it with fewer processes"
        return CaseOutcome(case_id, Outcome.FAILED, "process_died", detail)
