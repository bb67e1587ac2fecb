"""Where training runs in MLflow name a patient, and taking the name out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroln.errors import IntegrityError
from retroln.settings import Settings
from retroln.tracking.connection import Connection, translated

REMOVED = "withdrawn_rows"
"""What a redacted artifact says: how many rows were taken out."""
_ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class FoundRun:
    """A training run.

    Attributes:
        under_way: it has not ended.
        in_trash: MLflow takes no tag of it.
    """

    run_id: str
    under_way: bool
    in_trash: bool
    tags: dict[str, str]


@dataclass(frozen=True)
class Trace:
    """A JSON artifact of a run that holds rows of a patient."""

    run_id: str
    path: str


def runs_tagged(settings: Settings, name: str, value: str) -> list[FoundRun]:
    """Every run with this tag, in any experiment, also in MLflow's trash; nothing is made."""
    from mlflow.entities import ViewType

    connection = Connection.of(settings)
    with translated(connection.uri):
        experiments = connection.client.search_experiments(view_type=ViewType.ALL)
        found = connection.client.search_runs(
            [one.experiment_id for one in experiments],
            f"tags.`{name}` = '{value}'",
            run_view_type=ViewType.ALL,
        )
    return [
        FoundRun(
            str(run.info.run_id),
            under_way=run.info.status not in _ENDED,
            in_trash=run.info.lifecycle_stage == "deleted",
            tags=dict(run.data.tags),
        )
        for run in found
    ]


def traces(settings: Settings, run_id: str, patient_id: str) -> list[Trace]:
    """The run's JSON artifacts that hold rows of a patient.

    A row is of a patient if it is an object whose `patient_id` says so (`test/scores.json`), or a list
    whose second value does (`dataset/manifest.json`).

    Raises:
        IntegrityError: an artifact is no JSON, so nobody can tell.
    """
    connection = Connection.of(settings)
    with translated(connection.uri):
        paths = [path for path in _files(connection, run_id) if path.endswith(".json")]
    contents = ((path, _read(connection, run_id, path)) for path in paths)
    return [Trace(run_id, path) for path, content in contents if _without(content, patient_id)[1]]


def redact(settings: Settings, trace: Trace, patient_id: str) -> None:
    """Write the artifact anew without the patient's rows, and how many rows are missing."""
    connection = Connection.of(settings)
    content, removed = _without(_read(connection, trace.run_id, trace.path), patient_id)
    if isinstance(content, dict):
        content[REMOVED] = content.get(REMOVED, 0) + removed
    with translated(connection.uri):
        connection.client.log_dict(trace.run_id, content, trace.path)


def set_tag(settings: Settings, run_id: str, name: str, value: str) -> None:
    """Set one tag of a run that is not in MLflow's trash."""
    connection = Connection.of(settings)
    with translated(connection.uri):
        connection.client.set_tag(run_id, name, value)


def _files(connection: Connection, run_id: str, folder: str | None = None) -> Iterator[str]:
    for info in connection.client.list_artifacts(run_id, folder):
        if info.is_dir:
            yield from _files(connection, run_id, info.path)
        else:
            yield info.path


def _read(connection: Connection, run_id: str, path: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="retroln-trace-") as folder, translated(connection.uri):
        content = Path(connection.client.download_artifacts(run_id, path, folder)).read_bytes()
    try:
        return json.loads(content)
    except ValueError as error:
        raise IntegrityError(
            "an artifact in MLflow cannot be searched for a patient",
            file=f"run {run_id}: {path}",
            expected="JSON",
            got=str(error),
            fix="look at it, and write it anew or delete it",
        ) from error


def _without(content: Any, patient_id: str) -> tuple[Any, int]:
    """The content without the patient's rows, at any depth, and how many these were."""
    if isinstance(content, dict):
        parts = {name: _without(value, patient_id) for name, value in content.items()}
        return {name: part for name, (part, _) in parts.items()}, sum(n for _, n in parts.values())
    if isinstance(content, list):
        others = [_without(value, patient_id) for value in content if not _is_of(value, patient_id)]
        removed = len(content) - len(others) + sum(number for _, number in others)
        return [part for part, _ in others], removed
    return content, 0


def _is_of(row: Any, patient_id: str) -> bool:
    if isinstance(row, dict):
        return bool(row.get("patient_id") == patient_id)
    return isinstance(row, list) and row[1:2] == [patient_id]
