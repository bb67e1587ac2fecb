"""Patience with servers that are away for a while: a restart, a failover, a broken line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from retroln.errors import UnavailableError

Result = TypeVar("Result")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0

log = logging.getLogger(__name__)


def riding_out(call: Callable[[], Result], patience_s: float) -> Result:
    """Call, and call again with growing pauses while a server is away; `call` must bear repetition.

    Args:
        call: what to do.
        patience_s: how long after the first failure it is still tried; 0 tries once.

    Raises:
        UnavailableError: the server was still away when patience ran out.
    """
    pause_s, deadline = _FIRST_PAUSE_S, None
    while True:
        try:
            return call()
        except UnavailableError as error:
            now = time.monotonic()
            if deadline is None:
                deadline = now + patience_s
            if now >= deadline:
                raise
            log.warning("%s; trying again for up to %.0f s", error, deadline - now)
            time.sleep(min(pause_s, deadline - now))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
