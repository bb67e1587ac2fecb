"""Training runs in MLflow. An outage of the tracking server never stops a training."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retroln.errors import UserError
from retroln.settings import Settings
from retroln.tracking.connection import Connection, translated, without_delay

if TYPE_CHECKING:
    from mlflow.entities import Metric

_log = logging.getLogger(__name__)
_PARAM_CHARACTERS = 500
_BATCH = 900  # MLflow takes at most 1000 metrics in one call
_DIGEST_CHARACTERS = 36  # MLflow's limit


@dataclass
class TrainingRun:
    """One open MLflow run.

    Metrics go to `journal` first (JSON lines) and from there to MLflow. While MLflow is away they
    wait in the journal; the next call, or `replay`, delivers them with their own time.
    """

    connection: Connection
    run_id: str
    journal: Path
    _warned: bool = field(default=False, repr=False)

    def log_epoch(self, epoch: Mapping[str, Any]) -> None:
        """Log the numbers of one epoch; key `epoch` is the step. Never raises for an outage."""
        self.log_metrics({k: v for k, v in epoch.items() if k != "epoch"}, step=int(epoch["epoch"]))

    def log_metrics(self, metrics: Mapping[str, Any], *, step: int = 0) -> None:
        """Log numbers; what is no finite number (None, text, NaN) is left out. Never raises for an outage."""
        numbers = {_metric_name(k): float(v) for k, v in metrics.items() if _is_number(v)}
        if not numbers:
            return
        entry = {
            "run_id": self.run_id,
            "step": step,
            "time_ms": time.time_ns() // 1_000_000,
            "metrics": numbers,
        }
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        with self.journal.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        self._deliver()

    def log_dataset(self, manifest: Mapping[str, Any], *, name: str, version: str) -> None:
        """Attach the dataset's manifest (`dataset/manifest.json`) and name it as the run's input.

        Args:
            manifest: JSON content: which cases, in which role and fold.
            version: the dataset's version hash.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self.log_json(manifest, "dataset/manifest.json")
        source = json.dumps({"manifest": "dataset/manifest.json", "version": version})
        dataset = Dataset(name, version[:_DIGEST_CHARACTERS], "retroln", source)
        with translated(self.connection.uri):
            self.connection.client.log_inputs(
                self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
            )

    def log_json(self, content: Mapping[str, Any], path: str) -> None:
        """Store `content` as JSON under the run's artifact `path`."""
        with translated(self.connection.uri):
            self.connection.client.log_dict(self.run_id, dict(content), path)

    def log_figures(self, figures: Mapping[str, bytes]) -> None:
        """Store PNG images as `figures/<name>.png`."""
        with tempfile.TemporaryDirectory(prefix="retroln-figures-") as folder:
            for name, png in figures.items():
                path = Path(folder, f"{name}.png")
                path.write_bytes(png)
                self.log_file(path, "figures")

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store one file under the run's artifact `folder`."""
        with translated(self.connection.uri):
            self.connection.client.log_artifact(self.run_id, str(path), folder)

    def set_tag(self, name: str, value: str) -> None:
        """Set one tag on the run."""
        with translated(self.connection.uri):
            self.connection.client.set_tag(self.run_id, name, value)

    def end(self, status: str) -> None:
        """Deliver what waits and close the run (`FINISHED`, `FAILED`, `KILLED`).

        Raises:
            UserError: MLflow is away; the journal stays and its path is named.
        """
        try:
            replay(self.connection, self.journal)
            with translated(self.connection.uri):
                self.connection.client.set_terminated(self.run_id, status)
        except UserError as error:
            raise UserError(
                "training metrics could not be delivered to MLflow",
                file=self.journal,
                got=str(error),
                fix="start MLflow; the file keeps the metrics until this run is continued",
            ) from error

    def _deliver(self) -> None:
        try:
            with without_delay():
                replay(self.connection, self.journal)
            self._warned = False
        except UserError as error:
            if not self._warned:
                _log.warning("MLflow is away, metrics wait in %s: %s", self.journal, error)
            self._warned = True


def replay(connection: Connection, journal: Path) -> int:
    """Deliver a journal to MLflow and remove it; returns the number of lines delivered.

    A journal that does not exist counts as delivered (0). Delivering twice is harmless: MLflow
    keeps one value per metric, step and time.

    Raises:
        UserError: MLflow did not take it; the journal stays.
    """
    if not journal.exists():
        return 0
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line]
    for run_id in dict.fromkeys(line["run_id"] for line in lines):
        metrics = [m for line in lines if line["run_id"] == run_id for m in _metrics(line)]
        for first in range(0, len(metrics), _BATCH):
            with translated(connection.uri):
                connection.client.log_batch(run_id, metrics=metrics[first : first + _BATCH])
    journal.unlink()
    return len(lines)


@contextmanager
def training_run(
    settings: Settings,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> Iterator[TrainingRun]:
    """Open a run, or go on with `run_id` after a crash; it ends FINISHED, or FAILED on an error.

    Args:
        name: the run's name in the list.
        params: settings of the training; nested mappings become `outer.inner`.

    Raises:
        UserError: MLflow cannot be reached.
    """
    run = start(settings, name=name, params=params, tags=tags, run_id=run_id)
    try:
        yield run
    except BaseException as error:
        _end_failed(run, error)
        raise
    run.end("FINISHED")


def start(
    settings: Settings,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> TrainingRun:
    """As `training_run`, for a caller that ends the run on its own (`TrainingRun.end`)."""
    from mlflow.entities import Param

    connection = Connection.of(settings)
    client = connection.client
    with translated(connection.uri):
        if run_id is None:
            created = client.create_run(connection.experiment_id, run_name=name, tags=dict(tags or {}))
            run_id = str(created.info.run_id)
            flat = [Param(k, str(v)[:_PARAM_CHARACTERS]) for k, v in _flat(params).items()]
            client.log_batch(run_id, params=flat)
        else:
            client.update_run(run_id, status="RUNNING")
    return TrainingRun(connection, run_id, settings.work_dir / "journals" / f"{run_id}.jsonl")


def _end_failed(run: TrainingRun, cause: BaseException) -> None:
    """Close a failed run; MLflow's own failure must not hide `cause`."""
    status = "FAILED" if isinstance(cause, Exception) else "KILLED"
    try:
        with without_delay():
            run.set_tag("error", f"{type(cause).__name__}: {cause}"[:_PARAM_CHARACTERS])
            run.end(status)
    except UserError as error:
        _log.warning("run %s could not be closed: %s", run.run_id, error)


def _metrics(line: Mapping[str, Any]) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(k, v, line["time_ms"], line["step"]) for k, v in line["metrics"].items()]


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _metric_name(name: str) -> str:
    """MLflow allows letters, digits and `_-. :/`; anything else becomes `_`."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. :/") else "_" for c in name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")
