"""Ask a Prefect server for what `prefect.yaml` needs of it, over HTTP: retroln imports no orchestrator."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from retroln.cli.finding import Finding, tried
from retroln.errors import MissingExtraError, NotFoundError, SettingsError, UnavailableError
from retroln.settings import Settings, env_files

_TIMEOUT_S = 10
_DEPLOY = "make stack, or python -m infra.stack deploy"
Ask = Callable[..., Any]


class PrefectPlace(BaseSettings):
    """Where Prefect is, from Prefect's own variables; they may stand in RetroLN's files of settings too."""

    model_config = SettingsConfigDict(env_prefix="PREFECT_", extra="ignore", frozen=True)

    api_url: str | None = None
    api_auth_string: SecretStr | None = None

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET `path`, or POST `body` to it, and return the JSON of the reply.

        Raises:
            SettingsError: the address is none, or the login is refused.
            UnavailableError: no answer, or one that is no Prefect API's.
        """
        address = str(self.api_url).rstrip("/")
        if not address.startswith(("http://", "https://")):
            raise SettingsError(
                "PREFECT_API_URL cannot be used",
                got=address,
                fix="set PREFECT_API_URL to http(s)://HOST:PORT/api",
            )
        headers = {"Content-Type": "application/json"}
        if self.api_auth_string:
            login = b64encode(self.api_auth_string.get_secret_value().encode()).decode()
            headers["Authorization"] = f"Basic {login}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{address}{path}", data=data, headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310
                return json.loads(reply.read())
        except (OSError, ValueError) as error:
            raise _meaning(error, path) from error


def use_prefect(settings: Settings) -> Iterator[Finding]:
    """The API, then each pool, queue and deployment that prefect.yaml names."""
    place = PrefectPlace(_env_file=env_files())
    if place.api_url is None:
        wanted = settings.fan_out == "workers"
        seen = "PREFECT_API_URL is not set" + ("" if wanted else ": flows run in their own process")
        yield Finding(
            "prefect server", not wanted, seen, "set PREFECT_API_URL (make stack does)" if wanted else ""
        )
        return
    found = tried("prefect server", place.api_url, lambda: _version(place.ask), "PREFECT_API_URL")
    yield found
    if found.well:
        yield from _against_file(place.ask)


def _against_file(ask: Ask) -> Iterator[Finding]:
    path = Path(os.environ.get("RETROLN_HOME", "."), "prefect.yaml")
    if not path.exists():
        yield Finding("deployments", True, f"{path} is not here: pools and deployments are not compared")
        return
    try:
        wanted = _wanted(path)
    except MissingExtraError as error:
        yield Finding("deployments", False, error.what, str(error.fix))
        return
    queues = sorted({(entry["work_pool"]["name"], entry["work_pool"]["work_queue_name"]) for entry in wanted})
    for pool in sorted({pool for pool, _ in queues}):
        names = [queue for of, queue in queues if of == pool]
        yield tried(pool, "work pool", partial(_pool, ask, pool, names), "the pool")
    yield tried("deployments", str(path), lambda: _deployments(ask, wanted), "the deployments")


def _version(ask: Ask) -> str:
    return f"Prefect {ask('/admin/version')}"


def _wanted(path: Path) -> list[dict[str, Any]]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("PyYAML is missing", fix="pip install 'retroln[orchestrate]'") from error
    return list(yaml.safe_load(path.read_text("utf-8"))["deployments"])


def _pool(ask: Ask, pool: str, queues: list[str]) -> str:
    """Workers that were seen lately, and whether somebody asks each queue for work."""
    if pool not in {found["name"] for found in ask("/work_pools/filter", {})}:
        raise NotFoundError("there is no such work pool", fix=_DEPLOY)
    workers = [w["name"] for w in ask(f"/work_pools/{pool}/workers/filter", {}) if w["status"] == "ONLINE"]
    states = {queue["name"]: queue["status"] for queue in ask(f"/work_pools/{pool}/queues/filter", {})}
    idle = [queue for queue in queues if not workers or states.get(queue) != "READY"]
    if idle:
        start = f"prefect worker start --pool {pool} --work-queue {idle[0]}"
        raise UnavailableError(f"no worker takes from {', '.join(idle)}", fix=f"make stack, or {start}")
    return f"{', '.join(queues)} served by {', '.join(sorted(workers))}"


def _deployments(ask: Ask, wanted: list[dict[str, Any]]) -> str:
    known = {found["name"]: found for found in ask("/deployments/filter", {"limit": 200})}
    missing = [entry["name"] for entry in wanted if entry["name"] not in known]
    if missing:
        raise NotFoundError(f"not deployed: {', '.join(missing)}", fix=_DEPLOY)
    other = [e["name"] for e in wanted if known[e["name"]]["entrypoint"] != e["entrypoint"]]
    if other:
        raise NotFoundError(f"deployed from another entry point: {', '.join(other)}", fix=_DEPLOY)
    paused = [entry["name"] for entry in wanted if known[entry["name"]]["paused"]]
    return f"{len(wanted)} deployed" + (f", paused: {', '.join(paused)}" if paused else "")


def _meaning(error: Exception, path: str) -> SettingsError | UnavailableError:
    code = error.code if isinstance(error, urllib.error.HTTPError) else None
    if code in (401, 403):
        fix = "set PREFECT_API_AUTH_STRING to the server's user:password"
        return SettingsError("Prefect refused the login", fix=fix)
    fix = "check that the server runs and that PREFECT_API_URL ends in /api"
    return UnavailableError("Prefect does not answer", got=f"{path}: {error}", fix=fix)
