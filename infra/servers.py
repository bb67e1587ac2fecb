"""Real servers as child processes: SeaweedFS for S3, PostgreSQL for the catalog and MLflow, and Prefect's.

Each listens on 127.0.0.1 alone, on free ports, with random secrets kept in its folder, so the same
folder started again is the same server. It stops with its `with` block.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra import postgres, seaweedfs
from infra.ports import free_ports
from infra.seaweedfs import S3Server
from infra.stack.health import answers
from infra.stack.plan import TELEMETRY_OFF

_START_S = 180  # Prefect makes its tables by a hundred migrations; who ends at once is seen at once
_STOP_S = 5
_ALL = ("Admin", "Read", "Write", "List", "Tagging")


@contextmanager
def start_seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS with its data in `folder`; ready to take objects when the block begins."""
    port = free_ports(seaweedfs.PORTS)
    server = S3Server(f"http://127.0.0.1:{port}", *_s3_keys(folder))
    command, log = seaweedfs.server_command(folder, port), folder / "server.log"
    environment = {**os.environ, **seaweedfs.ENVIRONMENT}
    with _running(command, log, signal.SIGTERM, env=environment) as process:
        _wait_until(server.takes_objects, process, log)
        yield server


@contextmanager
def start_postgres(folder: Path | None = None, *, durable: bool = True) -> Iterator[str]:
    """Run PostgreSQL with its data in `folder` (default: a temporary one); yields the URL of database `app`.

    Without `durable` it is faster and a power cut may lose data: for what is thrown away anyhow.
    PostgreSQL refuses to run as root: there it runs as user `postgres`, who gets the folder and must
    be able to reach it.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="retroln-postgres-", ignore_cleanup_errors=True) as temporary:
            Path(temporary).chmod(0o711)
            with start_postgres(Path(temporary) / "data", durable=False) as url:
                yield url
        return
    password = postgres.init_cluster(folder)
    port = free_ports(1)
    command = postgres.server_command(folder, port, durable=durable)
    log = folder.with_name(folder.name + ".log")
    with _running(command, log, signal.SIGINT, cwd="/", **postgres.step_down()) as process:
        _wait_until(lambda: postgres.is_ready(port), process, log)
        yield f"postgresql+psycopg://app:{password}@127.0.0.1:{port}/app"


@contextmanager
def start_prefect(folder: Path) -> Iterator[str]:
    """Run Prefect's server, with all its services, on SQLite in `folder`; yields the address of its API."""
    url = f"http://127.0.0.1:{free_ports(1)}"
    environment = {
        **os.environ,
        **TELEMETRY_OFF,
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": url.rpartition(":")[2],
        "PREFECT_API_URL": f"{url}/api",
    }
    command = [str(Path(sys.executable).with_name("prefect")), "server", "start"]
    log = folder / "server.log"
    with _running(command, log, signal.SIGTERM, env=environment) as process:
        _wait_until(lambda: answers(f"{url}/api/health"), process, log)
        yield f"{url}/api"


def make_database(url: str, name: str) -> str:
    """Create database `name` beside the one of `url`; returns its URL."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return f"{url.rpartition('/')[0]}/{name}"


def make_catalog(url: str, name: str) -> str:
    """Create database `name` beside the one of `url` with a catalog's empty tables; returns its URL."""
    from retroln.catalog.database import upgrade_database

    made = make_database(url, name)
    upgrade_database(made)
    return made


def _s3_keys(folder: Path) -> tuple[str, str]:
    """The keys in SeaweedFS's own file of identities, made on first use."""
    if not (folder / "s3.json").exists():
        seaweedfs.write_identities(folder, {"app": seaweedfs.new_keys()}, {"app": _ALL})
    keys = json.loads((folder / "s3.json").read_text("utf-8"))["identities"][0]["credentials"][0]
    return keys["accessKey"], keys["secretKey"]


@contextmanager
def _running(
    command: list[str], log: Path, stop: signal.Signals, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process with its output in `log`, stopped by `stop`, after a grace by SIGKILL."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options
        )
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-800:]


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start; the end of {log}: {_end(log)}")
        time.sleep(0.1)
