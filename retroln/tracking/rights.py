"""What the login in use may do in MLflow. It only asks; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retroln.errors import SettingsError
from retroln.settings import Settings
from retroln.tracking.connection import Connection, translated, without_delay
from retroln.tracking.registry import MlflowRegistry

_OWN_PERMISSIONS = "/api/3.0/mlflow/users/current/permissions"
_MAY_UPDATE = ("EDIT", "MANAGE")  # names of mlflow.server.auth.permissions that can_update


@dataclass(frozen=True)
class Rights:
    """Who one is to MLflow.

    Attributes:
        who: the login, or why there is none.
        may_move_aliases: on the registered model of the settings.
        versions: how many versions of it can be seen.
    """

    who: str
    may_move_aliases: bool
    versions: int


def rights(settings: Settings) -> Rights:
    """Log in and look.

    Raises:
        SettingsError: the server refuses the login.
        RefusedError: the experiment was deleted.
        UnavailableError: no answer within seconds.
    """
    connection = Connection.of(settings)
    with without_delay(), translated(connection.uri):
        who, may = _asked(connection) if connection.uri.startswith("http") else ("a file, no login", True)
        connection.find_experiment()
        return Rights(who, may, len(MlflowRegistry(connection).versions()))


def _asked(connection: Connection) -> tuple[str, bool]:
    """The login's name, and whether the server lets it move aliases of the model."""
    reply = _get(connection, _OWN_PERMISSIONS)
    if reply.status_code == 401:
        raise SettingsError(
            "MLflow refused the login",
            got=f"user {connection.user}" if connection.user else "no login",
            fix="mend RETROLN_MLFLOW_USER and RETROLN_MLFLOW_PASSWORD",
        )
    if reply.status_code == 404:
        return "the server knows no logins", True
    reply.raise_for_status()
    found = reply.json()
    who = f"logged in as {connection.user}" if connection.user else "logged in"
    return who, found["is_admin"] or any(_covers(grant, connection) for grant in found["permissions"])


def _covers(grant: dict[str, Any], connection: Connection) -> bool:
    return (
        grant["resource_type"] == "registered_model"
        and grant["resource_pattern"] in (connection.model_name, "*")
        and grant["permission"] in _MAY_UPDATE
    )


def _get(connection: Connection, path: str) -> Any:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    _ = connection.client  # puts the login where MLflow looks for it
    ask: Any = http_request
    login: Any = get_default_host_creds
    return ask(login(connection.uri), path, "GET", raise_on_status=False)
