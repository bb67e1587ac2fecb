"""Training runs in MLflow. An outage of the tracking server never stops a training."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retroln.errors import UserError
from retroln.settings import Settings
from retroln.tracking.connection import Connection, translated, without_delay
from retroln.tracking.journal import Journal

_log = logging.getLogger(__name__)
_PARAM_CHARACTERS = 500
_DIGEST_CHARACTERS = 36  # MLflow's limit
_ERROR_TAG = "error"
_PART = "-"  # between run and part in a journal's name; a run's id holds none


@dataclass
class TrainingRun:
    """One open MLflow run, or a part of it that one process logs.

    Metrics go to `journal` first (JSON lines) and from there to MLflow. While MLflow is away they
    wait in the journal; the next call, or `replay_waiting`, delivers them with their own time. A
    metric keeps the first value logged for a step.
    """

    connection: Connection
    run_id: str
    journal: Path
    _warned: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        """Nothing is opened before the first metric."""
        self._lines = Journal(self.connection, self.run_id, self.journal)

    def log_epoch(self, epoch: Mapping[str, Any]) -> None:
        """Log the numbers of one epoch; key `epoch` is the step. Never raises for an outage."""
        self.log_epochs([epoch])

    def log_epochs(self, epochs: Iterable[Mapping[str, Any]]) -> None:
        """Log several epochs at once; those that were logged before are left out."""
        pairs = [({k: v for k, v in e.items() if k != "epoch"}, int(e["epoch"])) for e in epochs]
        self._write([_entry(metrics, step) for metrics, step in pairs])

    def log_metrics(self, metrics: Mapping[str, Any], *, step: int = 0) -> None:
        """Log numbers; what is no finite number (None, text, NaN) is left out. Never raises for an outage."""
        self._write([_entry(metrics, step)])

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
            UserError: MLflow is away or refuses; the journal stays and its path is named.
        """
        try:
            self._lines.deliver()
            with translated(self.connection.uri):
                self.connection.client.set_terminated(self.run_id, status)
            self.close()
        except UserError as error:
            what = f"metrics stay in this file until the run is continued: {error.what}"
            raise error.reworded(what=what, file=self.journal) from error

    def close(self) -> None:
        """Let go of the journal without ending the run; what waits in it stays."""
        self._lines.close()

    def _write(self, entries: list[dict[str, Any]]) -> None:
        written = [entry for entry in entries if entry["metrics"]]
        if not written:
            return
        self._lines.append(written)
        try:
            with without_delay():
                self._lines.deliver()
            self._warned = False
        except UserError as error:
            if not self._warned:
                _log.warning("metrics wait in %s: %s", self.journal, error)
            self._warned = True


def replay_waiting(settings: Settings, run_id: str | None = None) -> int:
    """Deliver every journal on this machine that no process is writing; the number of its lines.

    What MLflow does not take stays where it is, with a warning.

    Args:
        run_id: deliver the journals of this run alone.
    """
    connection = Connection.of(settings)
    found = sorted(_folder(settings).glob(f"{run_id or ''}*.jsonl"))
    return sum(_replay(Journal(connection, path.stem.split(_PART)[0], path)) for path in found)


def _replay(journal: Journal) -> int:
    if not journal.try_hold():
        return 0
    try:
        with without_delay():
            return journal.deliver()
    except UserError as error:
        _log.warning("metrics still wait in %s: %s", journal.path, error)
        return 0
    finally:
        journal.close()


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
        fail(run, error)
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
    """As `training_run`, for a caller that ends the run on its own (`TrainingRun.end`).

    A run that goes on is RUNNING again, its error is forgotten, and parameters that it lacks are added.
    """
    connection = Connection.of(settings)
    client = connection.client
    with translated(connection.uri):
        if run_id is None:
            created = client.create_run(connection.experiment_id, run_name=name, tags=dict(tags or {}))
            run_id = str(created.info.run_id)
            _log_params(connection, run_id, params, known=())
        else:
            client.update_run(run_id, status="RUNNING")
            data = client.get_run(run_id).data
            _log_params(connection, run_id, params, known=data.params)
            if _ERROR_TAG in data.tags:
                client.delete_tag(run_id, _ERROR_TAG)
    return attach(settings, run_id)


def attach(settings: Settings, run_id: str, part: str | None = None) -> TrainingRun:
    """A run that somebody else opened, to log to; neither asks MLflow nor changes the run's status.

    Args:
        part: what this process does for the run, e.g. `fold0`; parts of one run on one machine have
            journals of their own.
    """
    name = run_id if part is None else f"{run_id}{_PART}{part}"
    return TrainingRun(Connection.of(settings), run_id, _folder(settings) / f"{name}.jsonl")


@contextmanager
def attached(settings: Settings, run_id: str, part: str | None = None) -> Iterator[TrainingRun]:
    """`attach` for a block; the journal is let go at its end, delivered or not."""
    run = attach(settings, run_id, part)
    try:
        yield run
    finally:
        run.close()


def find_unfinished(settings: Settings, tags: Mapping[str, str]) -> str | None:
    """The latest run of the experiment with these tags that is not FINISHED, if any."""
    connection = Connection.of(settings)
    wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    with translated(connection.uri):
        found = connection.client.search_runs(
            [connection.experiment_id],
            " and ".join([*wanted, "attributes.status != 'FINISHED'"]),
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
    return str(found[0].info.run_id) if found else None


def is_finished(settings: Settings, run_id: str) -> bool:
    """Whether the run has ended well."""
    connection = Connection.of(settings)
    with translated(connection.uri):
        return str(connection.client.get_run(run_id).info.status) == "FINISHED"


def fail(run: TrainingRun, cause: BaseException | str) -> None:
    """Close a run FAILED, or KILLED when a signal ended it; MLflow's own failure must not hide `cause`."""
    killed = isinstance(cause, BaseException) and not isinstance(cause, Exception)
    reason = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
    try:
        with without_delay():
            run.set_tag(_ERROR_TAG, reason[:_PARAM_CHARACTERS])
            run.end("KILLED" if killed else "FAILED")
    except UserError as error:
        _log.warning("run %s could not be closed: %s", run.run_id, error)
    finally:
        run.close()


def _log_params(
    connection: Connection, run_id: str, params: Mapping[str, Any], known: Container[str]
) -> None:
    from mlflow.entities import Param

    flat = [Param(k, str(v)[:_PARAM_CHARACTERS]) for k, v in _flat(params).items() if k not in known]
    if flat:
        connection.client.log_batch(run_id, params=flat)


def _folder(settings: Settings) -> Path:
    return settings.work_dir / "journals"


def _entry(metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
    numbers = {_metric_name(k): float(v) for k, v in metrics.items() if _is_number(v)}
    return {"step": step, "time_ms": time.time_ns() // 1_000_000, "metrics": numbers}


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
