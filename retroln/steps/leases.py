"""Keep what a worker has in hand: its claim is renewed from a thread for as long as the work lasts.

The thread runs in the process that does the work and needs its turn there at least once per lease. NumPy,
zlib, torch and what is built on them let go of Python's lock while they compute. A process that is stopped,
or code that keeps the lock for a whole lease, may lose the claim; the catalog then refuses what it wants to
record (`Catalog.of_worker`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

_RENEWALS_PER_LEASE = 3

log = logging.getLogger(__name__)


@contextmanager
def renewed(renew: Callable[[], bool], lease_s: float, at_most_s: float) -> Iterator[None]:
    """Renew a claim while the block runs; no thread is left behind.

    Args:
        renew: renews the claim; False says that it is lost for good. An error, say of a catalog that is
            away, is logged, and the next turn tries again.
        lease_s: how long a renewal holds.
        at_most_s: a block that lasts longer hangs, and loses its claim like one that died.
    """
    over = Event()
    thread = Thread(target=_renew, args=(renew, lease_s, at_most_s, over), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _renew(renew: Callable[[], bool], lease_s: float, at_most_s: float, over: Event) -> None:
    pause_s = lease_s / _RENEWALS_PER_LEASE
    for _ in range(int(at_most_s / pause_s)):
        if over.wait(pause_s):
            return
        try:
            if not renew():
                log.warning("the claim on this case is lost; what is made of it here will not be recorded")
                return
        except Exception as error:
            log.warning("the claim on this case could not be renewed, the next turn tries again: %s", error)
    log.warning("the work lasts for more than %g s; its claim is not renewed any more", at_most_s)
