"""Bring the stack up and down. Both can be repeated: what is there already stays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from infra import postgres
from infra.ports import is_free
from infra.postgres import write_secret
from infra.stack import programs, provision
from infra.stack.deploy import deploy
from infra.stack.health import answers
from infra.stack.plan import TELEMETRY_OFF, Stack, new_secrets
from infra.stack.supervisor import Supervisor, is_worker

STORAGE = ("postgres", "seaweedfs")
"""Programs that keep what the others work on."""


def up(stack: Stack, *, shard_workers: int = 1, webhook: bool = False, tell: Callable[[str], None]) -> None:
    """Start what is not running, make what is missing, deploy.

    Raises:
        RuntimeError: a port is taken by somebody else, a program does not start, or what was told to end
            does not.
        UserError: the catalog is a newer RetroLN's.
    """
    supervisor = Supervisor(stack.home)
    pid = supervisor.pid()
    if supervisor.is_stopping():
        tell("waiting for the end of what is stopping")
        supervisor.wait_for_end(pid)
    stack.write_files()
    superuser = postgres.init_cluster(stack.home / "postgres")
    if not supervisor.is_running():
        _require_free(stack)
    servers = programs.servers(stack, webhook)
    workers = programs.workers(stack, shard_workers, webhook)
    supervisor.configure([*servers, *workers])
    tell("PostgreSQL, SeaweedFS")
    start_storage(stack, supervisor, superuser)
    upgrade_catalog(stack, supervisor, tell)
    tell("Prefect, MLflow")
    start_services(stack, supervisor)
    provision.make_mlflow_users(stack)
    if webhook:
        provision.make_webhook(stack)
    tell("pools, automations, deployments")
    deploy_here(stack)
    tell("workers")
    supervisor.start(*(worker.name for worker in workers))


def start_storage(stack: Stack, supervisor: Supervisor, superuser_password: str) -> None:
    """PostgreSQL and SeaweedFS, with the databases and buckets that are missing."""
    supervisor.start(*STORAGE)
    supervisor.wait_for("postgres", lambda: postgres.is_ready(stack.postgres_port))
    provision.make_databases(stack, superuser_password)
    supervisor.wait_for("seaweedfs", stack.s3("admin").takes_objects)
    provision.make_buckets(stack)


def upgrade_catalog(stack: Stack, supervisor: Supervisor, tell: Callable[[str], None]) -> None:
    """Bring the catalog's tables to this RetroLN's schema; workers, which know another one, stop before."""
    if provision.is_catalog_current(stack):
        return
    tell("the catalog's tables")
    supervisor.stop(*filter(is_worker, supervisor.states()))
    provision.upgrade_catalog(stack)


def start_services(stack: Stack, supervisor: Supervisor) -> None:
    """Prefect and MLflow, on databases and buckets that are there."""
    supervisor.start("prefect", "mlflow")
    supervisor.wait_for("mlflow", lambda: answers(f"{stack.mlflow_url}/health"))
    supervisor.wait_for("prefect", lambda: answers(f"{stack.prefect_url}/api/health"))


def deploy_here(stack: Stack) -> None:
    """`deploy` against this stack's server."""
    client = stack.client_environment("operator")
    os.environ.update(TELEMETRY_OFF | client)
    os.environ["RETROLN_ENV_FILE"] = str(stack.home / "retroln.env")  # it has the user's own settings, too
    os.environ["PREFECT_HOME"] = str(stack.home / "prefect-client")
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from retroln.settings import Settings

    names = (PREFECT_API_URL, PREFECT_API_AUTH_STRING)
    with temporary_settings({setting: client[setting.name] for setting in names}):
        deploy(Settings())


def rotate(stack: Stack, **options: Any) -> None:
    """Give every login, key and password a new value, and start anew with them.

    The webhook's encryption key stays, because MLflow keeps its webhooks under it, and so does the key of the
    pseudonyms, because a patient must keep the same name. Runs that go on lose their logins: let them end.

    Raises:
        RuntimeError: the stack does not run (MLflow's admin must change its own password).
    """
    supervisor = Supervisor(stack.home)
    if not supervisor.is_running() or supervisor.is_stopping():
        raise RuntimeError("the stack does not run, or is stopping; start it with `make stack`, then rotate")
    old = stack.secrets
    new = {**new_secrets(), **{name: old[name] for name in ("webhook_encryption", "pseudonym")}}
    provision.change_admin_password(stack, old["mlflow"]["admin"], new["mlflow"]["admin"])
    write_secret(stack.home / "secrets.json", json.dumps(new, indent=1))
    down(stack)
    up(Stack(stack.home, stack.first_port), **options)


def down(stack: Stack) -> bool:
    """Stop what `up` started and nothing else; data stays. False if nothing ran."""
    supervisor = Supervisor(stack.home)
    if not supervisor.is_running():
        return False
    supervisor.shut_down()
    return True


def _require_free(stack: Stack) -> None:
    wanted = [stack.first_port + offset for offset in (0, 1, 2, 3, *range(10, 20))]
    taken = [str(port) for port in wanted if not is_free(port)]
    if taken:
        raise RuntimeError(
            f"port {', '.join(taken)} is taken; stop what listens there, or set RETROLN_STACK_PORT"
            " to the first of twenty free ones"
        )
