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

from retroln.cli import heartbeat
from retroln.cli.finding import Finding, tried
from retroln.errors import (
    MissingExtraError,
    NotFoundError,
    SettingsError,
    UnavailableError,
    install_from_checkout,
)
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
    """The API, then each pool, queue and deployment that prefect.yaml names, and who ends silent runs."""
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
    yield tried("heartbeat", "automations", lambda: _watch(ask, wanted), "the automations")


def _version(ask: Ask) -> str:
    return f"Prefect {ask('/admin/version')}"


def _wanted(path: Path) -> list[dict[str, Any]]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("PyYAML is missing", fix=install_from_checkout("orchestrate")) from error
    return list(yaml.safe_load(path.read_text("utf-8"))["deployments"])


def _pool(ask: Ask, pool: str, queues: list[str]) -> str:
    """Workers that were seen lately, and whether somebody asks each queue for work."""
    if not ask("/work_pools/filter", {"work_pools": {"name": {"any_": [pool]}}}):
        raise NotFoundError("there is no such work pool", fix=_DEPLOY)
    online = {"workers": {"status": {"any_": ["ONLINE"]}}}
    workers = [worker["name"] for worker in _every(ask, f"/work_pools/{pool}/workers/filter", online)]
    of_these = {"work_queues": {"name": {"any_": queues}}}
    states = {queue["name"]: queue["status"] for queue in ask(f"/work_pools/{pool}/queues/filter", of_these)}
    idle = [queue for queue in queues if not workers or states.get(queue) != "READY"]
    if idle:
        start = f"prefect worker start --pool {pool} --work-queue {idle[0]}"
        raise UnavailableError(f"no worker takes from {', '.join(idle)}", fix=f"make stack, or {start}")
    return f"{', '.join(queues)} served by {', '.join(sorted(workers))}"


def _every(ask: Ask, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All that Prefect has, page after page."""
    offset = 0
    while page := ask(path, {**body, "offset": offset}):
        yield from page
        offset += len(page)


def _deployed(ask: Ask, wanted: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Our deployments on the server, by name; others may have deployments of the same names."""
    names = [entry["name"] for entry in wanted]
    ours = {"deployments": {"name": {"any_": names}, "tags": {"all_": [heartbeat.TAG]}}}
    return {found["name"]: found for found in _every(ask, "/deployments/filter", ours)}


def _deployments(ask: Ask, wanted: list[dict[str, Any]]) -> str:
    known = _deployed(ask, wanted)
    missing = [entry["name"] for entry in wanted if entry["name"] not in known]
    if missing:
        raise NotFoundError(f"not deployed: {', '.join(missing)}", fix=_DEPLOY)
    other = [e["name"] for e in wanted if known[e["name"]]["entrypoint"] != e["entrypoint"]]
    if other:
        raise NotFoundError(f"deployed from another entry point: {', '.join(other)}", fix=_DEPLOY)
    paused = [entry["name"] for entry in wanted if known[entry["name"]]["paused"]]
    return f"{len(wanted)} deployed" + (f", paused: {', '.join(paused)}" if paused else "")


def _watch(ask: Ask, wanted: list[dict[str, Any]]) -> str:
    """The automations, which must see our runs alone and bear the silence between our heartbeats."""
    names = (heartbeat.ZOMBIE, heartbeat.FAILING, heartbeat.OVER_AGE)
    present = list(_every(ask, "/automations/filter", {"automations": {"name": {"any_": names}}}))
    if missing := [name for name in names if name not in {found["name"] for found in present}]:
        raise NotFoundError(f"no automation named {'; '.join(missing)}", fix=_DEPLOY)
    if wide := [found["name"] for found in present if not heartbeat.is_limited(found)]:
        raise SettingsError(f"runs of others are touched by {'; '.join(wide)}", fix=_DEPLOY)
    zombies = [found for found in present if found["name"] == heartbeat.ZOMBIE]
    if not all(map(heartbeat.is_watched_from_the_start, zombies)):
        raise SettingsError("a run that dies before its first heartbeat is not seen", fix=_DEPLOY)
    if off := [found["name"] for found in present if not found["enabled"]]:
        raise SettingsError(
            f"switched off: {'; '.join(off)}", fix="switch it on at Prefect's page Automations"
        )
    beats = {name: heartbeat.heartbeat_s(of["job_variables"]) for name, of in _deployed(ask, wanted).items()}
    if unset := sorted(name for name, beat in beats.items() if beat is None):
        raise SettingsError(f"deployed without a heartbeat: {', '.join(unset)}", fix=_DEPLOY)
    allowed_s = min(found["trigger"]["within"] for found in zombies)
    slowest_s = max((beat for beat in beats.values() if beat is not None), default=heartbeat.UNSET_S)
    if allowed_s < heartbeat.silence_s(slowest_s):
        raise SettingsError(
            "runs that live are crashed",
            expected=f"{heartbeat.silence_s(slowest_s)} s of silence, for a heartbeat every {slowest_s} s",
            got=f"{allowed_s:g} s",
            fix=_DEPLOY,
        )
    return f"every {slowest_s} s; a run of ours that is silent for {allowed_s:g} s is Crashed"


def _meaning(error: Exception, path: str) -> SettingsError | UnavailableError:
    code = error.code if isinstance(error, urllib.error.HTTPError) else None
    if code in (401, 403):
        fix = "set PREFECT_API_AUTH_STRING to the server's user:password"
        return SettingsError("Prefect refused the login", fix=fix)
    fix = "check that the server runs and that PREFECT_API_URL ends in /api"
    return UnavailableError("Prefect does not answer", got=f"{path}: {error}", fix=fix)
