"""nnU-Net's loader processes, which hand batches over in shared memory.

A batch that cannot be handed over is dropped with a traceback, and the loader goes on with the next one:
where no batch fits, training would wait for ever.
"""

from __future__ import annotations

import os
import traceback
from multiprocessing import queues
from pathlib import Path
from typing import Any

from retroln import machine

_STATUS = 1
_NO_SPACE, _LONG_PATH = "unable to allocate shared memory", "AF_UNIX path too long"


def end_when_stuck() -> None:
    """Let a process that this one forks end when it cannot hand over what it made; training then fails."""
    queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def _end(error: Exception, batch: Any) -> None:
    traceback.print_exception(error)
    os._exit(_STATUS)  # in a thread, where SystemExit ends the thread alone


def why_stuck(output: str) -> tuple[str, str] | None:
    """What hindered loaders, and the fix, read from what a training wrote; None if something else did."""
    if _NO_SPACE in output:
        size = machine.shared_memory_bytes() or 0
        return (
            f"training ran out of shared memory ({machine.SHARED_MEMORY} has {size >> 20} MiB)",
            "enlarge it (docker run --shm-size=2g), or set nnUNet_n_proc_DA=0 to load without processes",
        )
    if _LONG_PATH in output:
        return f"the path of the temporary folder is too long for a socket ({_temporary()})", (
            "set TMPDIR to a path of at most 70 characters"
        )
    return None


def _temporary() -> Path:
    from tempfile import gettempdir

    return Path(gettempdir())
