"""Metrics on their way to MLflow: written to a file first, so that an outage loses none of them."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retroln.errors import ConflictError
from retroln.tracking.connection import Connection, translated

if TYPE_CHECKING:
    from mlflow.entities import Metric

_BATCH = 900  # MLflow takes at most 1000 metrics in one call
_PATIENCE_S = 30.0  # for a sweep that is just delivering this file
_POLL_S = 0.2


@dataclass
class Journal:
    """Metrics of one run that MLflow has not taken yet, as JSON lines.

    From the first `append` until `close`, one process holds the file (flock). A metric has one value
    per step: what the run holds already, under whatever time and value, is not delivered again.
    """

    connection: Connection
    run_id: str
    path: Path
    _handle: int | None = field(default=None, repr=False)
    _known: dict[str, set[int]] = field(default_factory=dict, repr=False)

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write down `{"step", "time_ms", "metrics": {name: number}}`, each as one line.

        Raises:
            ConflictError: another process writes this journal.
        """
        handle = self._hold()
        lines = [json.dumps({"run_id": self.run_id, **entry}) + "\n" for entry in entries]
        os.write(handle, "".join(lines).encode())

    def deliver(self) -> int:
        """Send what waits to MLflow, in order; the number of lines that waited.

        Raises:
            UserError: MLflow did not take it; the lines stay.
        """
        if self._handle is None and not self.path.exists():
            return 0
        self._hold()
        lines = _lines(self.path)
        if lines:
            self._send(lines)
            os.truncate(self.path, 0)
        return len(lines)

    def close(self) -> None:
        """Let the file go, and remove it when nothing waits in it."""
        if self._handle is None:
            return
        if not os.fstat(self._handle).st_size:
            self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None

    def try_hold(self) -> bool:
        """Take the file, which exists, unless another process holds it."""
        if self._handle is None:
            self._handle = _locked(self.path)
        return self._handle is not None

    def _hold(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _PATIENCE_S
        while not self.try_hold():
            if time.monotonic() > deadline:
                raise ConflictError(
                    "another process logs to this run", file=self.path, fix="wait until it has ended"
                )
            time.sleep(_POLL_S)
        assert self._handle is not None
        return self._handle

    def _send(self, lines: list[dict[str, Any]]) -> None:
        self._look_up({name for line in lines for name in line["metrics"]})
        fresh: dict[tuple[str, int], Metric] = {}
        for line in lines:
            for metric in _metrics(line):
                if metric.step not in self._known[metric.key]:
                    fresh.setdefault((metric.key, metric.step), metric)
        metrics = list(fresh.values())
        for first in range(0, len(metrics), _BATCH):
            batch = metrics[first : first + _BATCH]
            with translated(self.connection.uri):
                self.connection.client.log_batch(self.run_id, metrics=batch)
            for metric in batch:
                self._known[metric.key].add(metric.step)

    def _look_up(self, names: set[str]) -> None:
        """Learn which steps of these metrics the run holds; asked once per metric."""
        unknown = names - self._known.keys()
        if not unknown:
            return
        client = self.connection.client
        with translated(self.connection.uri):
            held = client.get_run(self.run_id).data.metrics.keys()
            found = {
                name: {m.step for m in client.get_metric_history(self.run_id, name)}
                for name in unknown & held
            }
        self._known |= {name: found.get(name, set()) for name in unknown}


def _locked(path: Path) -> int | None:
    """The file, locked, its torn last line cut off; None when another process holds it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            os.truncate(handle, path.read_bytes().rfind(b"\n") + 1)
            return handle
        os.close(handle)  # its last holder has removed it since


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _metrics(line: Mapping[str, Any]) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(k, v, line["time_ms"], line["step"]) for k, v in line["metrics"].items()]
