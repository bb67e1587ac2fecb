"""Where MLflow is, a client for it, and its errors in RetroLN's words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from retroln.errors import MissingExtraError, RefusedError, install_from_checkout
from retroln.files import ensure_file
from retroln.machine import require_home
from retroln.settings import Settings
from retroln.tracking.refusals import refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_CHATTY = ("mlflow", "alembic")
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # where artifacts go straight to a bucket: older servers store a trailing checksum as part of the object
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}
_WITHOUT_DELAY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@dataclass(frozen=True)
class Connection:
    """One MLflow server or database, the experiment and the registered model used there.

    Attributes:
        uri: `sqlite:///FILE` (embedded) or `http(s)://HOST:PORT` (a server).
        experiment: experiment that holds the training runs; made when it is missing.
        artifacts: folder for artifacts of an embedded MLflow; a server keeps its own.
        model_name: name in the model registry.
        user, password: login of a server with basic auth; one per process.
    """

    uri: str
    experiment: str
    artifacts: str
    model_name: str
    user: str | None = None
    password: SecretStr | None = None

    @classmethod
    def of(cls, settings: Settings) -> Connection:
        """The connection that the settings describe; nothing is opened yet."""
        return cls(
            settings.mlflow_uri,
            settings.experiment,
            settings.mlflow_artifacts,
            settings.model_name,
            settings.mlflow_user,
            settings.mlflow_password,
        )

    @cached_property
    def client(self) -> MlflowClient:
        """A client bound to `uri`; MLflow's process-wide tracking URI is left alone.

        Raises:
            MissingExtraError: MLflow is not installed.
            UserError: there is no home folder.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self.user and self.password:
            # MLflow reads its login from the environment at each request and offers no other way
            os.environ["MLFLOW_TRACKING_USERNAME"] = self.user
            os.environ["MLFLOW_TRACKING_PASSWORD"] = self.password.get_secret_value()
        require_home()
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise MissingExtraError("MLflow is not installed", fix=install_from_checkout("train")) from error
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        if self.uri.startswith(_SQLITE):
            ensure_file(Path(self.uri.removeprefix(_SQLITE)))
        with translated(self.uri):
            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; makes the experiment when it does not exist yet."""
        with translated(self.uri):
            return self.find_experiment() or self._make_experiment()

    def find_experiment(self) -> str | None:
        """The experiment's id, None when there is none yet.

        Raises:
            RefusedError: somebody deleted it, and MLflow keeps its name.
        """
        with translated(self.uri):
            found = self.client.get_experiment_by_name(self.experiment)
        if found and found.lifecycle_stage == "deleted":
            identifier = found.experiment_id
            raise RefusedError(
                f"MLflow's experiment {self.experiment} was deleted",
                fix=f"`mlflow experiments restore -x {identifier}`, or choose another RETROLN_EXPERIMENT",
            )
        return str(found.experiment_id) if found else None

    def _make_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        embedded = not self.uri.startswith("http")
        location = Path(self.artifacts).absolute().as_uri() if embedded else None
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=location))
        except MlflowException:
            if made_by_another_process := self.find_experiment():
                return made_by_another_process
            raise


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Raise MLflow's errors as RetroLN's: `UnavailableError` for outages alone, others by `refusals`."""
    require_home()
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except (MlflowException, RequestException, DBAPIError) as error:
        if named := refusal(error, uri):
            raise named from error
        raise


@contextmanager
def without_delay() -> Iterator[None]:
    """Let MLflow's HTTP calls give up after seconds, not its default of minutes.

    MLflow reads these two from the environment at each request and offers no other way.
    """
    before = {name: os.environ.get(name) for name in _WITHOUT_DELAY}
    os.environ.update(_WITHOUT_DELAY)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
