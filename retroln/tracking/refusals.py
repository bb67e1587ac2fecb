"""What an error of MLflow's client means: away for a while, or wrong until a person mends it."""

from __future__ import annotations

import re
from typing import Any

from retroln.errors import (
    ConflictError,
    Meaning,
    NotFoundError,
    RefusedError,
    SettingsError,
    UnavailableError,
    UserError,
)

_CHECK = "check that MLflow at {uri} runs and is reachable, then try again"
_LOOK = "look at what MLflow says; its own log says more"
_LOGIN = "mend RETROLN_MLFLOW_USER and RETROLN_MLFLOW_PASSWORD"

AWAY = Meaning(UnavailableError, "does not answer", _CHECK)
LOGIN = Meaning(SettingsError, "refused the login", _LOGIN)
NO_RIGHT = Meaning(
    SettingsError, "does not let this login do that", f"{_LOGIN}, or give the login the right in MLflow"
)
MISSING = Meaning(NotFoundError, "has no such thing", _LOOK)
TAKEN = Meaning(ConflictError, "has it already, or another one changed it", _LOOK)
NOT_MLFLOW = Meaning(SettingsError, "does not answer here, something else does", "mend RETROLN_MLFLOW_URI")
TLS = Meaning(
    SettingsError,
    "cannot be reached by TLS",
    "mend its certificate, name its authority in MLFLOW_TRACKING_SERVER_CERT_PATH, or check http:// and"
    " https:// in RETROLN_MLFLOW_URI",
)
FULL = Meaning(RefusedError, "has no room left", "free space on the server")
TOO_LARGE = Meaning(
    RefusedError,
    "or a proxy before it takes no request of this size",
    "raise the proxy's limit, such as nginx's client_max_body_size",
)
DELETED = Meaning(
    RefusedError,
    "changes nothing that was deleted",
    "`mlflow runs restore --run-id ID` or `mlflow experiments restore -x ID`, or begin anew",
)
REFUSED = Meaning(RefusedError, "cannot do this", _LOOK)

_BY_CODE = {
    "ABORTED": AWAY,
    "ALREADY_EXISTS": TAKEN,
    "CANCELLED": AWAY,
    "CUSTOMER_UNAUTHORIZED": LOGIN,
    "DEADLINE_EXCEEDED": AWAY,
    "ENDPOINT_NOT_FOUND": NOT_MLFLOW,
    "INTERNAL_ERROR": AWAY,  # also what the client says of a connection that broke
    "IO_ERROR": AWAY,
    "NOT_FOUND": MISSING,
    "PERMISSION_DENIED": NO_RIGHT,
    "REQUEST_LIMIT_EXCEEDED": AWAY,
    "RESOURCE_ALREADY_EXISTS": TAKEN,
    "RESOURCE_CONFLICT": TAKEN,
    "RESOURCE_DOES_NOT_EXIST": MISSING,
    "RESOURCE_EXHAUSTED": AWAY,
    "TEMPORARILY_UNAVAILABLE": AWAY,
    "UNAUTHENTICATED": LOGIN,
}
_BY_STATUS = {
    401: LOGIN,
    403: NO_RIGHT,
    404: MISSING,
    408: AWAY,
    409: TAKEN,
    413: TOO_LARGE,
    429: AWAY,
    501: REFUSED,
    507: FULL,
}

# the client wraps what lies below it in words alone
_BY_WORDS = {
    "CERTIFICATE_VERIFY_FAILED": TLS,
    "WRONG_VERSION_NUMBER": TLS,
    "No connection adapters": NOT_MLFLOW,
    "Invalid url": NOT_MLFLOW,
    "not in a valid JSON format": NOT_MLFLOW,
    "{'detail': 'Not Found'}": NOT_MLFLOW,  # as Prefect, say, answers
    "must be in the 'active' state": DELETED,
}
_STATUS = re.compile(r"failed with error code (\d{3})|\b([45]\d\d) (?:Client|Server) Error")
"""Statuses that have no code in MLflow, or none by the time that an error comes out of its client."""


def refusal(error: Exception, uri: str) -> UserError | None:
    """The error to raise for one of MLflow, of its HTTP client or its database; None for any other."""
    meaning, code = _meaning(error)
    if meaning is None:
        return None
    what = f"{meaning.what} ({code})" if code else meaning.what
    return meaning.kind(f"MLflow {what}", got=str(error)[:400], fix=meaning.fix.format(uri=uri))


def _meaning(error: Exception) -> tuple[Meaning | None, str]:
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if meaning := _of_database(error) or _of_database(error.__cause__):
        return meaning, ""
    if not isinstance(error, MlflowException | RequestException):
        return None, ""
    if said := next((meaning for words, meaning in _BY_WORDS.items() if words in str(error)), None):
        return said, ""
    if not isinstance(error, MlflowException):
        return _of_http(error), ""
    statuses = [int("".join(found)) for found in _STATUS.findall(str(error))]
    if error.error_code == "INTERNAL_ERROR" and statuses:  # of several files one may be worth another try
        return _of_status(max(statuses)), f"status {max(statuses)}"
    return _BY_CODE.get(error.error_code, REFUSED), error.error_code


def _of_http(error: Any) -> Meaning:
    """Artifacts travel by plain HTTP; without a reply the line broke."""
    if error.response is None:
        return AWAY
    return _of_status(error.response.status_code)


def _of_status(status: int) -> Meaning:
    return _BY_STATUS.get(status) or (AWAY if status >= 500 else REFUSED)


def _of_database(error: BaseException | None) -> Meaning | None:
    """An embedded MLflow is a SQLite file, whose errors say more than what MLflow makes of them."""
    import sqlite3

    from sqlalchemy.exc import DBAPIError

    from retroln.catalog.refusals import meaning_of

    if not isinstance(error, DBAPIError | sqlite3.Error) or (meaning := meaning_of(error)) is None:
        return None
    fix = _CHECK if meaning.kind is UnavailableError else "mend the database that RETROLN_MLFLOW_URI names"
    return Meaning(meaning.kind, meaning.what, fix)
