"""The stack's programs: servers first, then workers; each with its command and environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra import postgres, seaweedfs
from infra.postgres import write_secret
from infra.stack.plan import TELEMETRY_OFF, Stack

_BIN = Path(sys.executable).parent
_GRACE_S = 40  # for a training to write its checkpoint and copy it to the store


@dataclass(frozen=True)
class Program:
    """One program that supervisord keeps running.

    Attributes:
        user: run as this user (root only), else as who started the stack.
        stop: signal that ends it orderly.
        grace_s: how long it may take to end before it is killed.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str | None = None
    stop: str = "TERM"
    grace_s: int = 10
    directory: Path | None = None


def servers(stack: Stack, webhook: bool = False) -> list[Program]:
    """PostgreSQL, S3, Prefect and MLflow, in the order they need each other."""
    return [
        Program(
            "postgres",
            postgres.server_command(stack.home / "postgres", stack.postgres_port),
            user=postgres.step_down().get("user"),
            stop="INT",
            directory=Path("/"),
        ),
        Program(
            "seaweedfs",
            seaweedfs.server_command(stack.home / "seaweedfs", stack.s3_port),
            seaweedfs.ENVIRONMENT,
        ),
        Program("prefect", [_tool("prefect"), "server", "start"], _prefect_environment(stack)),
        Program("mlflow", _mlflow_command(stack), _mlflow_environment(stack, webhook)),
    ]


def workers(stack: Stack, shard_workers: int = 1, webhook: bool = False) -> list[Program]:
    """One worker for the flows that coordinate, some for shards, and two per GPU (or one CPU in its place).

    Coordinating flows wait for shards, so shards must not compete with them for a worker's places. One
    training and one inference at a time share a GPU; a training never waits for another on the same GPU.
    """
    cpu, gpu = _worker_environment(stack, "retroln.env"), _worker_environment(stack, "gpu.env")
    found = [_worker("cpu-flows", "cpu-pool", "flows", cpu)]
    found += [
        _worker(f"cpu-shards-{number}", "cpu-pool", "shards", cpu, limit=1) for number in range(shard_workers)
    ]
    for name, device in _gpus():
        for queue in ("training", "inference"):
            found.append(_worker(f"{name}-{queue}", "gpu-pool", queue, gpu | device, limit=1))
    if webhook:
        command = [sys.executable, "-m", "infra.bridge", str(stack.bridge_port)]
        found.append(Program("bridge", command, cpu | {"RETROLN_WEBHOOK_SECRET": stack.secrets["webhook"]}))
    return found


def _worker(name: str, pool: str, queue: str, environment: Mapping[str, str], limit: int = 0) -> Program:
    command = [sys.executable, "-m", "infra.worker", str(_GRACE_S), _tool("prefect"), "worker", "start"]
    command += ["--name", name, "--pool", pool, "--work-queue", queue]
    command += ["--type", "process", "--no-create-pool-if-not-found", "--install-policy", "never"]
    command += ["--limit", str(limit)] if limit else []
    return Program(f"worker-{name}", command, environment, grace_s=_GRACE_S + 15)


def _worker_environment(stack: Stack, env_file: str) -> dict[str, str]:
    """Prefect's own settings; RETROLN_* come from the file, where `ps` does not show them."""
    client = stack.client_environment("operator")
    return {
        **TELEMETRY_OFF,
        "RETROLN_HOME": str(Path.cwd()),
        "RETROLN_ENV_FILE": str(stack.home / env_file),
        "RETROLN_FAN_OUT": "workers",
        "PREFECT_API_URL": client["PREFECT_API_URL"],
        "PREFECT_API_AUTH_STRING": client["PREFECT_API_AUTH_STRING"],
        "PREFECT_HOME": str(stack.home / "prefect-client"),
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        # Prefect answers 500 while its database restarts; what flows ask of it bears repetition
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("RETROLN_STACK_POLL_S", "2"),
        "PREFECT_RUNNER_POLL_FREQUENCY": "5",
    }


def _prefect_environment(stack: Stack) -> dict[str, str]:
    port = stack.prefect_url.rpartition(":")[2]
    url = stack.database_url("prefect", "asyncpg")
    return {
        **TELEMETRY_OFF,
        "PREFECT_HOME": str(stack.home / "prefect"),
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_API_DATABASE_CONNECTION_URL": url.replace(
            "prefect@", f"prefect:{stack.secrets['postgres']['prefect']}@"
        ),
        "PREFECT_SERVER_API_AUTH_STRING": stack.secrets["prefect"],
        "PREFECT_API_AUTH_STRING": stack.secrets["prefect"],
        "PREFECT_API_URL": f"{stack.prefect_url}/api",
        "PREFECT_UI_API_URL": f"{stack.prefect_url}/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # those pages call a host outside on every load
    }


def _mlflow_command(stack: Stack) -> list[str]:
    port = stack.mlflow_url.rpartition(":")[2]
    command = [_tool("mlflow"), "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", port]
    command += ["--workers", "1", "--serve-artifacts", "--artifacts-destination", "s3://mlflow"]
    return [*command, "--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"]


def _mlflow_environment(stack: Stack, webhook: bool) -> dict[str, str]:
    url = stack.database_url("mlflow", "psycopg")
    url = url.replace("mlflow@", f"mlflow:{stack.secrets['postgres']['mlflow']}@")
    access, secret = stack.secrets["s3"]["mlflow"]
    config = stack.home / "mlflow-auth.ini"
    write_secret(
        config,
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = {url}\n"
        "admin_username = admin\n"
        "auth_cache_ttl_seconds = 30\n"  # else every request hashes the password anew
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
    )
    environment = {
        **TELEMETRY_OFF,
        "MLFLOW_BACKEND_STORE_URI": url,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": stack.secrets["mlflow"]["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": stack.secrets["mlflow_session"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_S3_ENDPOINT_URL": stack.s3_url,
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # as in retroln/storage/s3.py
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": stack.secrets["webhook_encryption"],
    }
    if webhook:  # opens MLflow to calls into this machine; see docs/decisions
        environment |= {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    return environment


def _gpus() -> list[tuple[str, dict[str, str]]]:
    """Name and environment per GPU of this machine; one without a GPU stands in when there is none."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", errors="replace", check=False
        ).stdout
    except OSError:
        listed = ""
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    return [(f"gpu-{i}", {"CUDA_VISIBLE_DEVICES": str(i)}) for i in range(count)] or [("gpu-none", {})]


def _tool(name: str) -> str:
    return str(_BIN / name)
