"""Run a Prefect worker so that its flow runs end before it does when it is told to stop.

    python -m infra.worker GRACE_S COMMAND...

A process worker kills its flow runs at once when it gets SIGTERM. Under this program they get SIGTERM first
and up to `GRACE_S` seconds: time for a training to write its checkpoint. Meanwhile the worker sleeps, so
that it takes no new run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from retroln.machine import share_threads

_POLL_S = 0.2


def main(grace_s: float, command: list[str]) -> int:
    """Run the worker until it ends by itself or is told to; its exit status."""
    share_threads(1)
    worker = subprocess.Popen(command)

    def stop(number: int, _: FrameType | None) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)
        end_flows(worker.pid, grace_s)
        worker.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return worker.wait()


def end_flows(worker: int, grace_s: float) -> None:
    """Tell the worker's flow runs to end and wait for them; the worker itself sleeps meanwhile."""
    try:
        os.kill(worker, signal.SIGSTOP)
        flows = children_of(worker)
        for flow in flows:
            os.kill(flow, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while any(map(is_running, flows)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        os.kill(worker, signal.SIGCONT)
    except ProcessLookupError:
        return  # it ended by itself in between


def children_of(pid: int) -> list[int]:
    """Process ids of a process's direct children."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text("utf-8").split()]


def is_running(pid: int) -> bool:
    """Whether a process lives; one that has ended and waits for its parent to notice does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
